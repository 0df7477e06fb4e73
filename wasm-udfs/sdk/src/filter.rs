//! Modules of the world `filter`.

use crate::{Batch, Bits, Field, Needs, Result};

/// Decides for each event whether it stays.
pub trait Filter: Sized + 'static {
    /// Reads the configuration (the JSON of the stream's `with` table) beside the columns of the input, and says which
    /// of them are needed.
    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs)>;

    /// The bit of every row that stays.
    fn keep(&mut self, rows: &Batch) -> Result<Bits>;
}

/// Makes a component of the world `filter` out of a type that implements [`Filter`].
#[macro_export]
macro_rules! export_filter {
    ($module:ty) => {
        #[doc(hidden)]
        mod __tidegate_export {
            use super::*;
            use ::std::{cell::RefCell, string::String, vec::Vec};
            use $crate::bindings::filter::exports::tidegate::udf::filter_api::Guest;

            ::std::thread_local! {
                static MODULE: RefCell<Option<$module>> = const { RefCell::new(None) };
            }

            struct Component;

            impl Guest for Component {
                fn configure(config: String, input: Vec<$crate::Field>) -> $crate::Result<$crate::Needs> {
                    $crate::report_panics();
                    let (module, needs) = <$module as $crate::Filter>::configure(&config, &input)?;
                    MODULE.set(Some(module));
                    Ok(needs)
                }

                fn keep(rows: $crate::Batch) -> $crate::Result<$crate::Bits> {
                    MODULE.with_borrow_mut(|m| match m {
                        Some(module) => $crate::Filter::keep(module, &rows),
                        None => Err("the module was not configured".into()),
                    })
                }
            }

            $crate::bindings::filter::export_filter_world!(Component with_types_in $crate::bindings::filter);
        }
    };
}
