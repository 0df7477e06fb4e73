//! Modules of the world `transform`.

use crate::{Batch, Field, Needs, Result};

/// Makes other events out of events.
pub trait Transform: Sized + 'static {
    /// Reads the configuration beside the columns of the input, and says which of them are needed and what the answers'
    /// columns will be.
    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs, Vec<Field>)>;

    /// Batches of the promised columns. Times and devices left empty are those of the input, row by row.
    fn apply(&mut self, rows: &Batch) -> Result<Vec<Batch>>;
}

/// Makes a component of the world `transform` out of a type that implements [`Transform`].
#[macro_export]
macro_rules! export_transform {
    ($module:ty) => {
        #[doc(hidden)]
        mod __tidegate_export {
            use super::*;
            use ::std::{cell::RefCell, string::String, vec::Vec};
            use $crate::bindings::transform::exports::tidegate::udf::transform_api::{Guest, Plan};

            ::std::thread_local! {
                static MODULE: RefCell<Option<$module>> = const { RefCell::new(None) };
            }

            struct Component;

            impl Guest for Component {
                fn configure(config: String, input: Vec<$crate::Field>) -> $crate::Result<Plan> {
                    $crate::report_panics();
                    let (module, needs, outputs) = <$module as $crate::Transform>::configure(&config, &input)?;
                    MODULE.set(Some(module));
                    Ok(Plan { needs, outputs })
                }

                fn apply(rows: $crate::Batch) -> $crate::Result<Vec<$crate::Batch>> {
                    MODULE.with_borrow_mut(|m| match m {
                        Some(module) => $crate::Transform::apply(module, &rows),
                        None => Err("the module was not configured".into()),
                    })
                }
            }

            $crate::bindings::transform::export_transform_world!(
                Component with_types_in $crate::bindings::transform
            );
        }
    };
}
