//! The sink between the real embedded log and the real embedded server, with both of them and itself cut off.

mod bed;
mod rows;
mod views;
