//! The macro that declares a section's struct, defaults and table of keys in one place.

use crate::value::Value;

/// A group of keys, nested in the file as the structs are nested here.
pub(crate) trait Section {
    /// The section's documentation, line by line.
    const ABOUT: &'static [&'static str];

    /// Calls `visitor` for every key, in file order. `prefix` is empty or ends in a dot.
    fn visit(&mut self, prefix: &str, visitor: &mut impl Visitor);
}

/// An operation on each key, such as listing it or setting its value.
pub(crate) trait Visitor {
    /// Visits a section, before its keys.
    fn section(&mut self, name: String, about: &'static [&'static str]);

    /// Visits a key, with its full name, documentation and current value.
    fn key<T: Value>(&mut self, name: String, about: &'static [&'static str], value: &mut T);
}

/// Declares a section: keys with documentation, type and default, then the sections inside it.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr, )+
        }
        $( sections { $( $inner:ident: $inner_type:ident, )+ } )?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $section {
            $( $(#[doc = $doc])+ pub $key: $type, )+
            $( $( #[doc = concat!("The section `", stringify!($inner), "`.")] pub $inner: $inner_type, )+ )?
        }

        impl Default for $section {
            fn default() -> Self {
                Self {
                    $( $key: $default, )+
                    $( $( $inner: $inner_type::default(), )+ )?
                }
            }
        }

        impl $crate::section::Section for $section {
            const ABOUT: &'static [&'static str] = &[$($about),+];

            fn visit(&mut self, prefix: &str, visitor: &mut impl $crate::section::Visitor) {
                $( visitor.key(format!("{prefix}{}", stringify!($key)), &[$($doc),+], &mut self.$key); )+
                $( $(
                    let inner = format!("{prefix}{}", stringify!($inner));
                    visitor.section(inner.clone(), <$inner_type as $crate::section::Section>::ABOUT);
                    self.$inner.visit(&format!("{inner}."), visitor);
                )+ )?
            }
        }
    };
}

pub(crate) use section;
