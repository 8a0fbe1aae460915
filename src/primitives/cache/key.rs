//! Where a value is kept: `cache:<tenant>:<namespace>:<key>:<version>`.

use std::fmt;

use smallvec::SmallVec;
use uuid::Uuid;

use crate::names::{Key, Name};
use crate::policy::Permit;

/// Stands for "no version"; a version that is a lone `-` is written `%2D`.
const NO_VERSION: &[u8] = b"-";

/// One tenant's part of one namespace. In the crate only: outside, a [`Permit`] is the way to it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    tenant: Uuid,
    namespace: Name,
}

impl Scope {
    pub(super) fn of(permit: &Permit) -> Self {
        Self { tenant: *permit.tenant().as_uuid(), namespace: permit.name().clone() }
    }

    /// Reads what [`Scope::write_to`] wrote.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (tenant, namespace) = std::str::from_utf8(text).ok()?.split_once(':')?;
        Some(Self { tenant: Uuid::try_parse(tenant).ok()?, namespace: Name::parse(namespace).ok()? })
    }

    #[cfg(test)]
    pub(super) fn for_test(tenant: u128, namespace: &str) -> Self {
        Self { tenant: Uuid::from_u128(tenant), namespace: Name::parse(namespace).unwrap() }
    }

    pub(super) fn tenant(&self) -> &Uuid {
        &self.tenant
    }

    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_str()
    }

    /// `<tenant>:<namespace>`, appended.
    pub(super) fn write_to<const N: usize>(&self, text: &mut SmallVec<[u8; N]>)
    where
        [u8; N]: smallvec::Array<Item = u8>,
    {
        let mut buffer = Uuid::encode_buffer();
        text.extend_from_slice(self.tenant.hyphenated().encode_lower(&mut buffer).as_bytes());
        text.push(b':');
        text.extend_from_slice(self.namespace.as_str().as_bytes());
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({}, {})", self.tenant, self.namespace)
    }
}

/// Where one value is kept, formatted once and used as it is by L1, SQLite and Redis.
pub(crate) struct Address {
    scope: Scope,
    version: Option<Key>,
    entry: SmallVec<[u8; 160]>,
}

impl Address {
    pub(super) fn new(scope: Scope, key: &Key, version: Option<Key>) -> Self {
        let mut entry = SmallVec::new();
        entry.extend_from_slice(b"cache:");
        scope.write_to(&mut entry);
        entry.push(b':');
        write_part(key, &mut entry);
        entry.push(b':');
        match &version {
            Some(version) => write_part(version, &mut entry),
            None => entry.extend_from_slice(NO_VERSION),
        }
        Self { scope, version, entry }
    }

    /// The address of an entry's key as it was found in the store.
    pub(super) fn of_entry(scope: Scope, entry: &[u8]) -> Self {
        Self { scope, version: None, entry: SmallVec::from_slice(entry) }
    }

    /// The entry's key.
    pub(super) fn entry(&self) -> &[u8] {
        &self.entry
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_ref().map(Key::as_str)
    }
}

/// The version of an entry's key; `None` where the key is not of the form, `Some(None)` for no version.
pub(super) fn version_of(entry: &[u8]) -> Option<Option<String>> {
    let at = entry.iter().rposition(|byte| *byte == b':')?;
    let part = &entry[at + 1..];
    if part == NO_VERSION {
        return Some(None);
    }
    percent_encoding::percent_decode(part).decode_utf8().ok().map(|text| Some(text.into_owned()))
}

/// The key may be personal data.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({:?}, {} bytes)", self.scope, self.entry.len())
    }
}

fn write_part(part: &Key, text: &mut SmallVec<[u8; 160]>) {
    let bytes = part.as_str().as_bytes();
    if bytes == NO_VERSION {
        text.extend_from_slice(b"%2D");
        return;
    }
    for byte in bytes {
        match byte {
            b':' => text.extend_from_slice(b"%3A"),
            b'%' => text.extend_from_slice(b"%25"),
            b'{' => text.extend_from_slice(b"%7B"),
            b'}' => text.extend_from_slice(b"%7D"),
            other => text.push(*other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str, version: Option<&str>) -> String {
        let version = version.map(|version| Key::parse(version).unwrap());
        let address = Address::new(Scope::for_test(1, "scoring"), &Key::parse(key).unwrap(), version);
        String::from_utf8(address.entry().to_vec()).unwrap()
    }

    #[test]
    fn an_entry_key_is_as_the_contract_writes_it() {
        let prefix = "cache:00000000-0000-0000-0000-000000000001:scoring:";
        for (key, version, expected) in [
            ("lead-1", None, "lead-1:-"),
            ("lead-1", Some("v2"), "lead-1:v2"),
            ("lead-1", Some("-"), "lead-1:%2D"),
            ("-", None, "%2D:-"),
            ("--", Some("a-b"), "--:a-b"),
            ("a:b%{c}", Some("1:2"), "a%3Ab%25%7Bc%7D:1%3A2"),
            ("é/ü", None, "é/ü:-"),
        ] {
            assert_eq!(entry(key, version), format!("{prefix}{expected}"));
        }
    }

    #[test]
    fn a_scope_and_a_version_read_back() {
        let scope = Scope::for_test(7, "scoring");
        let mut text: SmallVec<[u8; 128]> = SmallVec::new();
        scope.write_to(&mut text);
        assert_eq!(Scope::parse(&text), Some(scope.clone()));
        assert_eq!(Scope::parse(b"x:scoring"), None);
        for version in [None, Some("1"), Some("-"), Some("a:b%{}é")] {
            let parsed = version.map(|version| Key::parse(version).unwrap());
            let address = Address::new(scope.clone(), &Key::parse("k").unwrap(), parsed);
            assert_eq!(version_of(address.entry()), Some(version.map(str::to_owned)));
        }
    }

    proptest! {
        #[test]
        fn two_places_never_share_a_key(
            a in "[-:%{}2D37a]{1,6}", b in "[-:%{}2D37a]{1,6}",
            c in proptest::option::of("[-:%{}2D37a]{1,4}"), d in proptest::option::of("[-:%{}2D37a]{1,4}"),
        ) {
            let same = a == b && c == d;
            prop_assert_eq!(entry(&a, c.as_deref()) == entry(&b, d.as_deref()), same);
        }
    }
}
