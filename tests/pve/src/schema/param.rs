//! One parameter of an endpoint, or one key of a property string.

/// What a value's text must look like before any format is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    /// A repeated key in a form, a list in JSON; a lone value is wrapped.
    List,
}

/// The named or structured format of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    None,
    /// A leaf format by its published name, `-list` and `-opt` suffixes included.
    Name(&'static str),
    /// A comma-separated property string.
    Keys(&'static [Param]),
}

/// One parameter; built by the `const` functions below, so that tables read like the documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Param {
    pub(crate) name: &'static str,
    /// `net` with `Some(31)` stands for `net0` to `net31`.
    pub(crate) last_index: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) optional: bool,
    pub(crate) in_path: bool,
    pub(crate) format: Format,
    pub(crate) pattern: Option<&'static str>,
    pub(crate) choices: &'static [&'static str],
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    pub(crate) shortest: Option<usize>,
    pub(crate) longest: Option<usize>,
    pub(crate) requires: Option<&'static str>,
    /// First major release that knows it.
    pub(crate) since: u8,
    /// The key that a bare value in a property string stands for.
    pub(crate) default_key: bool,
    /// In a property string: this key is another name of that one…
    pub(crate) alias: Option<&'static str>,
    /// …and its own name is the value of that key (`virtio=MAC` sets `model=virtio`).
    pub(crate) key_alias: Option<&'static str>,
}

const fn param(name: &'static str, kind: Kind) -> Param {
    Param {
        name,
        last_index: None,
        kind,
        optional: false,
        in_path: false,
        format: Format::None,
        pattern: None,
        choices: &[],
        minimum: None,
        maximum: None,
        shortest: None,
        longest: None,
        requires: None,
        since: 0,
        default_key: false,
        alias: None,
        key_alias: None,
    }
}

impl Param {
    pub(crate) const fn text(name: &'static str) -> Self {
        param(name, Kind::Text)
    }

    pub(crate) const fn int(name: &'static str) -> Self {
        param(name, Kind::Integer)
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        param(name, Kind::Number)
    }

    pub(crate) const fn flag(name: &'static str) -> Self {
        param(name, Kind::Boolean)
    }

    pub(crate) const fn list(name: &'static str) -> Self {
        param(name, Kind::List)
    }

    /// A text with a named format.
    pub(crate) const fn named(name: &'static str, format: &'static str) -> Self {
        param(name, Kind::Text).format(format)
    }

    /// A property string.
    pub(crate) const fn keys(name: &'static str, keys: &'static [Self]) -> Self {
        let mut this = param(name, Kind::Text);
        this.format = Format::Keys(keys);
        this
    }

    /// A text out of a fixed set.
    pub(crate) const fn choice(name: &'static str, choices: &'static [&'static str]) -> Self {
        let mut this = param(name, Kind::Text);
        this.choices = choices;
        this
    }

    /// Another name of a key in a property string.
    pub(crate) const fn alias(name: &'static str, of: &'static str) -> Self {
        let mut this = param(name, Kind::Text).opt();
        this.alias = Some(of);
        this
    }

    /// A NIC model written as a key, its value being the hardware address.
    pub(crate) const fn model_alias(name: &'static str) -> Self {
        let mut this = Self::alias(name, "macaddr");
        this.key_alias = Some("model");
        this
    }

    pub(crate) const fn opt(mut self) -> Self {
        self.optional = true;
        self
    }

    pub(crate) const fn path(mut self) -> Self {
        self.in_path = true;
        self
    }

    pub(crate) const fn format(mut self, name: &'static str) -> Self {
        self.format = Format::Name(name);
        self
    }

    pub(crate) const fn matches(mut self, pattern: &'static str) -> Self {
        self.pattern = Some(pattern);
        self
    }

    pub(crate) const fn min(mut self, minimum: f64) -> Self {
        self.minimum = Some(minimum);
        self
    }

    pub(crate) const fn max(mut self, maximum: f64) -> Self {
        self.maximum = Some(maximum);
        self
    }

    pub(crate) const fn min_len(mut self, shortest: usize) -> Self {
        self.shortest = Some(shortest);
        self
    }

    pub(crate) const fn max_len(mut self, longest: usize) -> Self {
        self.longest = Some(longest);
        self
    }

    pub(crate) const fn needs(mut self, other: &'static str) -> Self {
        self.requires = Some(other);
        self
    }

    pub(crate) const fn up_to(mut self, last_index: u32) -> Self {
        self.last_index = Some(last_index);
        self
    }

    pub(crate) const fn since(mut self, major: u8) -> Self {
        self.since = major;
        self
    }

    pub(crate) const fn default_key(mut self) -> Self {
        self.default_key = true;
        self
    }

    /// Whether `key` is this parameter, an index included (`net3`; no leading zeros).
    pub(crate) fn is(&self, key: &str) -> bool {
        let Some(last) = self.last_index else {
            return key == self.name;
        };
        let Some(index) = key.strip_prefix(self.name) else {
            return false;
        };
        index.parse::<u32>().is_ok_and(|number| number <= last && number.to_string() == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_a_plain_number_within_its_range() {
        const NET: Param = Param::text("net").up_to(31);
        assert!(NET.is("net0") && NET.is("net31"));
        for wrong in ["net", "net32", "net01", "net+1", "nets1"] {
            assert!(!NET.is(wrong), "{wrong}");
        }
    }
}
