use crate::origin::Origin;

/// The resulting value of a key.
#[derive(Debug)]
pub(crate) struct EffectiveValue {
    pub(crate) name: String,
    /// The value in YAML, without secrets.
    pub(crate) value: String,
    /// Whether the value holds a secret.
    pub(crate) hidden: bool,
    pub(crate) origin: Origin,
    /// Whether a source gave a value that was refused: this one is then not what the user meant.
    pub(crate) refused: bool,
}

impl EffectiveValue {
    pub(crate) fn is_given(&self) -> bool {
        self.origin != Origin::Default
    }

    /// Returns the line of a problem or a warning about the value.
    pub(crate) fn with_reason(&self, reason: &str) -> String {
        let Self {
            origin,
            name,
            value,
            ..
        } = self;
        format!("{origin}: {name} = {value}: {reason}")
    }
}

pub(crate) fn find<'a>(effective: &'a [EffectiveValue], key: &str) -> Option<&'a EffectiveValue> {
    effective.iter().find(|effective| effective.name == key)
}
