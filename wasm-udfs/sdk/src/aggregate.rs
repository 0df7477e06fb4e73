//! Modules of the world `aggregate`.

use crate::{Batch, Column, Field, Needs, Result};
use std::{cell::RefCell, rc::Rc};

/// Grouped arithmetic. The gateway owns keys, windows and watermarks; the module owns what one group remembers.
pub trait Aggregate: Sized + 'static {
    /// What one group remembers.
    type State: 'static;

    /// Reads the configuration beside the columns of the input, and says which of them are needed and what the columns
    /// of a result will be.
    fn configure(config: &str, input: &[Field]) -> Result<(Self, Needs, Vec<Field>)>;

    /// The state of a group that has seen nothing.
    fn empty(&self) -> Self::State;

    /// Adds row i to the state `states[group[i]]`.
    fn update(&self, states: &mut [Self::State], group: &[u32], rows: &Batch) -> Result<()>;

    /// Adds what `source` remembers to `target`.
    fn merge(&self, target: &mut Self::State, source: &Self::State);

    /// The promised columns, one row for each state.
    fn finish(&self, states: &[&Self::State]) -> Result<Vec<Column>>;

    /// A state as bytes: little-endian, beginning with a version of their layout.
    fn save(&self, state: &Self::State) -> Vec<u8>;

    /// A state from the bytes that this or an earlier version of the module saved.
    fn load(&self, bytes: &[u8]) -> Result<Self::State>;
}

/// The groups of one instance; only the export macro touches it.
#[doc(hidden)]
pub struct Groups<A: Aggregate> {
    module: Rc<A>,
    states: RefCell<Vec<A::State>>,
}

impl<A: Aggregate> Groups<A> {
    pub fn new(module: Rc<A>) -> Self {
        Self { module, states: RefCell::default() }
    }

    fn extend(&self, states: &mut Vec<A::State>, count: usize) {
        if states.len() < count {
            states.resize_with(count, || self.module.empty());
        }
    }

    pub fn update(&self, rows: &Batch, group: &[u32], group_count: u32) -> Result<()> {
        let mut states = self.states.borrow_mut();
        self.extend(&mut states, group_count as usize);
        self.module.update(&mut states, group, rows)
    }

    pub fn finish(&self, groups: &[u32]) -> Result<Vec<Column>> {
        let mut states = self.states.borrow_mut();
        self.extend(&mut states, groups.iter().max().map_or(0, |g| *g as usize + 1));
        let wanted: Vec<&A::State> = groups.iter().map(|g| &states[*g as usize]).collect();
        self.module.finish(&wanted)
    }

    pub fn save(&self, groups: &[u32]) -> Vec<Vec<u8>> {
        let mut states = self.states.borrow_mut();
        self.extend(&mut states, groups.iter().max().map_or(0, |g| *g as usize + 1));
        groups.iter().map(|g| self.module.save(&states[*g as usize])).collect()
    }

    pub fn load(&self, groups: &[u32], saved: &[Vec<u8>]) -> Result<()> {
        let mut states = self.states.borrow_mut();
        self.extend(&mut states, groups.iter().max().map_or(0, |g| *g as usize + 1));
        for (group, bytes) in groups.iter().zip(saved) {
            states[*group as usize] =
                if bytes.is_empty() { self.module.empty() } else { self.module.load(bytes)? };
        }
        Ok(())
    }

    pub fn merge(&self, target: &[u32], source: &[u32]) {
        let mut states = self.states.borrow_mut();
        self.extend(&mut states, target.iter().chain(source).max().map_or(0, |g| *g as usize + 1));
        for (target, source) in target.iter().zip(source) {
            let taken = std::mem::replace(&mut states[*source as usize], self.module.empty());
            self.module.merge(&mut states[*target as usize], &taken);
        }
    }
}

/// Makes a component of the world `aggregate` out of a type that implements [`Aggregate`].
#[macro_export]
macro_rules! export_aggregate {
    ($module:ty) => {
        #[doc(hidden)]
        mod __tidegate_export {
            use super::*;
            use ::std::{cell::RefCell, rc::Rc, string::String, vec::Vec};
            use $crate::bindings::aggregate::exports::tidegate::udf::aggregate_api::{
                Guest, GuestGroups, Plan,
            };

            ::std::thread_local! {
                static MODULE: RefCell<Option<Rc<$module>>> = const { RefCell::new(None) };
            }

            struct Component;
            struct Groups($crate::Groups<$module>);

            impl Guest for Component {
                type Groups = Groups;

                fn configure(config: String, input: Vec<$crate::Field>) -> $crate::Result<Plan> {
                    $crate::report_panics();
                    let (module, needs, outputs) = <$module as $crate::Aggregate>::configure(&config, &input)?;
                    MODULE.set(Some(Rc::new(module)));
                    Ok(Plan { needs, outputs })
                }
            }

            impl GuestGroups for Groups {
                fn new() -> Self {
                    let module = MODULE.with_borrow(|m| m.clone());
                    Self($crate::Groups::new(module.expect("the host configures before it makes groups")))
                }
                fn update(&self, rows: $crate::Batch, group: Vec<u32>, group_count: u32) -> $crate::Result<()> {
                    self.0.update(&rows, &group, group_count)
                }
                fn finish(&self, groups: Vec<u32>) -> $crate::Result<Vec<$crate::Column>> {
                    self.0.finish(&groups)
                }
                fn save(&self, groups: Vec<u32>) -> $crate::Result<Vec<Vec<u8>>> {
                    Ok(self.0.save(&groups))
                }
                fn load(&self, groups: Vec<u32>, states: Vec<Vec<u8>>) -> $crate::Result<()> {
                    self.0.load(&groups, &states)
                }
                fn merge(&self, target: Vec<u32>, source: Vec<u32>) -> $crate::Result<()> {
                    self.0.merge(&target, &source);
                    Ok(())
                }
            }

            $crate::bindings::aggregate::export_aggregate_world!(
                Component with_types_in $crate::bindings::aggregate
            );
        }
    };
}
