//! The types of `wit/columns.wit` on the host's side, written by hand so that a batch is lowered straight from Arrow's
//! buffers: lists of numbers cross as one copy.
#![allow(
    unsafe_code,
    reason = "wasmtime's derives are unsafe impls; they check the types against the component's"
)]

use wasmtime::component::{ComponentType, Lift, Lower};

/// `kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum Kind {
    #[component(name = "boolean")]
    Boolean,
    #[component(name = "integer")]
    Integer,
    #[component(name = "float")]
    Float,
    #[component(name = "text")]
    Text,
    #[component(name = "blob")]
    Blob,
}

/// `log.level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "only modules make them")]
pub(crate) enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// `field`
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// `needs`
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Needs {
    pub(crate) times: bool,
    pub(crate) devices: bool,
    pub(crate) columns: Vec<String>,
}

/// `plan`, of transforms and aggregates alike.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Plan {
    pub(crate) needs: Needs,
    pub(crate) outputs: Vec<Field>,
}

/// `strings`, going in.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct StringsIn<'a> {
    pub(crate) values: &'a [&'a str],
    pub(crate) indices: &'a [u32],
}

/// `data`, going in.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum DataIn<'a> {
    #[component(name = "booleans")]
    Booleans(&'a [bool]),
    #[component(name = "integers")]
    Integers(&'a [i64]),
    #[component(name = "floats")]
    Floats(&'a [f64]),
    #[component(name = "texts")]
    Texts(StringsIn<'a>),
    #[component(name = "blobs")]
    Blobs(&'a [&'a [u8]]),
}

/// `column`, going in.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct ColumnIn<'a> {
    pub(crate) name: &'a str,
    pub(crate) data: DataIn<'a>,
    pub(crate) valid: Option<&'a [u64]>,
}

/// `batch`, going in.
#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct BatchIn<'a> {
    pub(crate) rows: u32,
    pub(crate) times: &'a [i64],
    pub(crate) devices: StringsIn<'a>,
    pub(crate) columns: &'a [ColumnIn<'a>],
}

/// `strings`, coming out.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct StringsOut {
    pub(crate) values: Vec<String>,
    pub(crate) indices: Vec<u32>,
}

/// `data`, coming out.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum DataOut {
    #[component(name = "booleans")]
    Booleans(Vec<bool>),
    #[component(name = "integers")]
    Integers(Vec<i64>),
    #[component(name = "floats")]
    Floats(Vec<f64>),
    #[component(name = "texts")]
    Texts(StringsOut),
    #[component(name = "blobs")]
    Blobs(Vec<Vec<u8>>),
}

/// `column`, coming out.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct ColumnOut {
    pub(crate) name: String,
    pub(crate) data: DataOut,
    pub(crate) valid: Option<Vec<u64>>,
}

/// `batch`, coming out.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct BatchOut {
    pub(crate) rows: u32,
    pub(crate) times: Vec<i64>,
    pub(crate) devices: StringsOut,
    pub(crate) columns: Vec<ColumnOut>,
}
