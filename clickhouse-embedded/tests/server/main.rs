//! The real program, spoken to with the official client and with plain HTTP.

mod crash;
mod harness;
mod safety;
mod speaks;
