//! The list of rules: one file per optimizer, one line in the table below.

use crate::rule::{Gradients, Hyperparameters, Rule, Scalars, StateKind, Visitor};

pub mod adadelta;
pub mod adafactor;
pub mod adagrad;
pub mod adam;
pub mod adamax;
pub mod asgd;
pub mod nadam;
pub mod radam;
pub mod rmsprop;
pub mod rprop;
pub mod sgd;
pub mod sparse_adam;

macro_rules! table {
    (
        element by element: $($each:literal => $each_module:ident :: $Each:ident),* $(,)?;
        tensor by tensor: $($whole:literal => $whole_module:ident :: $Whole:ident),* $(,)?;
    ) => {
        table! {
            $($each => $each_module :: $Each,)* $($whole => $whole_module :: $Whole,)*
        }

        impl Constants {
            /// Hands `visitor` the formula that the rule's flags select. A rule that looks at whole tensors has none:
            /// it is never visited.
            #[inline(always)]
            pub fn visit(&self, visitor: impl Visitor) {
                match self {
                    $(Self::$Each(constants) => constants.visit(visitor),)*
                    $(Self::$Whole(_) => {})*
                }
            }
        }
    };
    ($($name:literal => $module:ident :: $Rule:ident),* $(,)?) => {
        /// The rules by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = concat!("`", $name, "`")] $Rule,)*
        }

        /// A rule with the hyperparameters of one group.
        #[derive(Clone, Copy, Debug)]
        pub enum AnyRule {
            $(#[doc = concat!("`", $name, "`")] $Rule($module::$Rule),)*
        }

        /// A rule's constants of one step.
        #[derive(Clone, Copy, Debug)]
        pub enum Constants {
            $(#[doc = concat!("`", $name, "`")] $Rule($module::Constants),)*
        }

        impl Kind {
            /// The names of all rules.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The rule called `name`.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$Rule),)*
                    _ => None,
                }
            }

            /// Reads this rule's hyperparameters from a group.
            pub fn read<H: Hyperparameters>(self, group: &mut H) -> Result<AnyRule, H::Error> {
                Ok(match self {
                    $(Self::$Rule => AnyRule::$Rule(<$module::$Rule as Rule>::read(group)?),)*
                })
            }
        }

        impl AnyRule {
            /// See [`Rule::states`].
            pub fn states(&self) -> &'static [&'static str] {
                match self { $(Self::$Rule(rule) => rule.states(),)* }
            }

            /// See [`Rule::states_of`].
            pub fn states_of(&self, dims: usize) -> &'static [&'static str] {
                match self { $(Self::$Rule(rule) => rule.states_of(dims),)* }
            }

            /// See [`Rule::kinds`].
            pub fn kinds(&self) -> &'static [StateKind] {
                match self { $(Self::$Rule(rule) => rule.kinds(),)* }
            }

            /// See [`Rule::scalars`].
            pub fn scalars(&self) -> &'static [&'static str] {
                match self { $(Self::$Rule(rule) => rule.scalars(),)* }
            }

            /// See [`Rule::gradients`].
            pub fn gradients(&self) -> Gradients {
                match self { $(Self::$Rule(rule) => rule.gradients(),)* }
            }

            /// See [`Rule::is_usual`].
            pub fn is_usual(&self, scalars: &Scalars, largest: f64) -> bool {
                match self { $(Self::$Rule(rule) => rule.is_usual(scalars, largest),)* }
            }

            /// See [`Rule::constants`].
            pub fn constants(&self, scalars: &mut Scalars, first: bool) -> Constants {
                match self { $(Self::$Rule(rule) => Constants::$Rule(rule.constants(scalars, first)),)* }
            }
        }

    };
}

table! {
    element by element:
    "sgd" => sgd::Sgd,
    "adagrad" => adagrad::Adagrad,
    "rmsprop" => rmsprop::RmsProp,
    "adam" => adam::Adam,
    "adadelta" => adadelta::Adadelta,
    "adamax" => adamax::Adamax,
    "nadam" => nadam::NAdam,
    "radam" => radam::RAdam,
    "asgd" => asgd::Asgd,
    "rprop" => rprop::Rprop,
    "sparse_adam" => sparse_adam::SparseAdam;
    tensor by tensor:
    "adafactor" => adafactor::Adafactor;
}
impl Constants {
    /// As [`Constants::visit`], but of light rules only, a few multiply-adds with at most one state; else `false`.
    /// Where elements lie apart, to gather them into tiles would be the larger part of the work of such a rule.
    #[inline(always)]
    pub(crate) fn visit_light(&self, visitor: impl Visitor) -> bool {
        match self {
            Self::Sgd(constants) => {
                constants.visit(visitor);
                true
            }
            _ => false,
        }
    }

    /// As [`Constants::visit`], but of what large models are trained with alone: loops over formats that are only
    /// known together take many bytes.
    #[inline(always)]
    pub(crate) fn visit_heavy(&self, visitor: impl Visitor) {
        if let Self::Adam(constants) = self {
            constants.visit_usual(visitor);
        }
    }
}
