//! The platform that an action requires, beside that of this node.

mod peers;

use std::sync::Arc;

use gorego_storage::shorten;
use reapi::v2::{Platform, platform::Property};

pub use self::peers::PeerPlatforms;
use crate::{Failure, Network, Options};

/// Selects the persistent worker of an action. A node without one runs the action alone, with the same result.
const PERSISTENT_WORKER: &str = "persistentWorker";
/// The image of a container; images are not pulled.
const CONTAINER_IMAGE: &str = "container-image";
/// The property whose values clients spell differently.
const OS_FAMILY: &str = "OSFamily";
/// The property by which an action asks for the network of this machine, and its value.
const NETWORK: (&str, &str) = ("network", "on");
/// The value of the configuration that accepts every value.
const ANY: &str = "*";

/// The prefix of the text of a platform for this node only: a property without a name, which no other node has.
const HERE: &str = "\0\0";
/// The terminator of a name or a value in the text of a platform.
const END: char = '\0';

/// Returns the names and values in the text of a platform.
pub fn properties(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = text.split_terminator(END);
    std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
}

/// Returns whether a node that accepts this value of this property meets a request for a value.
pub fn accepts(name: &str, accepted: &str, value: &str) -> bool {
    accepted == ANY
        || accepted == value
        || (name == OS_FAMILY && accepted.eq_ignore_ascii_case(value))
}

/// Returns whether this node has every property in the text of a platform.
pub(crate) fn fits(options: &Options, text: &str) -> bool {
    options.ignore_unknown_platform
        || properties(text.strip_prefix(HERE).unwrap_or(text))
            .all(|(name, value)| has(options, name, value))
}

/// The nodes that may run an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// All nodes of the cluster.
    All,
    /// This node. The client's call demands it.
    Here,
    /// This node, which got the action from another node of the cluster.
    Guest,
}

/// Returns the text of `platform` for the scheduler, if there are other nodes. Fails if none of `nodes` has every
/// property.
pub(crate) fn admit_platform(
    field: &str,
    platform: &Platform,
    options: &Options,
    nodes: Nodes,
) -> Result<Arc<str>, Failure> {
    let mut checked = check_platform(field, platform, options);
    let peers = options.peer_platforms.as_ref();
    let Some(peers) = peers.filter(|_| nodes != Nodes::Guest) else {
        return checked.map(|()| "".into());
    };
    if options.concurrency == 0 && !matches!(checked, Err(Failure::Invalid { .. })) {
        let why = "this node runs no actions (`execution.enabled`)";
        checked = Err(Failure::Unmet(why.to_owned()));
    }
    let is_malformed = |property: &Property| {
        [&property.name, &property.value]
            .iter()
            .any(|text| text.contains(END))
    };
    if platform.properties.iter().any(is_malformed) {
        let field = format!("{field}.properties");
        return Err(Failure::invalid(field, "contain a NUL character"));
    }
    let text = peers.text(platform, nodes == Nodes::Here);
    match checked {
        Err(Failure::Unmet(_)) if nodes == Nodes::All && peers.meets(&text) => Ok(text),
        Err(Failure::Unmet(why)) if nodes == Nodes::All => {
            let why = format!("{why}; {}", peers.refusal(&text));
            Err(Failure::NoNode {
                platform: text,
                why,
            })
        }
        checked => checked.map(|()| text),
    }
}

/// Checks that this node has every property of `platform`, which is in `field`.
pub(crate) fn check_platform(
    field: &str,
    platform: &Platform,
    options: &Options,
) -> Result<(), Failure> {
    for (index, property) in platform.properties.iter().enumerate() {
        let (name, value) = (property.name.as_str(), property.value.as_str());
        if name.is_empty() {
            let field = format!("{field}.properties[{index}].name");
            return Err(Failure::invalid(
                field,
                "is empty, accepted is the name of a property",
            ));
        }
        if options.ignore_unknown_platform
            || name.starts_with(PERSISTENT_WORKER)
            || has(options, name, value)
        {
            continue;
        }
        return Err(Failure::Unmet(refusal(options, name, value)));
    }
    Ok(())
}

/// Returns the network that a platform asks for.
pub(crate) fn network_of(platform: &Platform) -> Network {
    let properties = platform.properties.iter();
    let mut pairs = properties.map(|property| (&*property.name, &*property.value));
    if pairs.any(|pair| pair == NETWORK) {
        Network::Host
    } else {
        Network::Usual
    }
}

fn has(options: &Options, name: &str, value: &str) -> bool {
    let accepted = options.platform.get(name);
    accepted.is_some_and(|accepted| {
        let mut accepted = accepted.iter();
        accepted.any(|accepted| accepts(name, accepted, value))
    })
}

fn refusal(options: &Options, name: &str, value: &str) -> String {
    let property = format!("{:?}", shorten(&format!("{name}={value}")));
    if name == CONTAINER_IMAGE {
        return format!(
            "platform property {property}: actions do not run in containers here; \
             to run them anyway, set `{CONTAINER_IMAGE}: '{ANY}'` in `execution.platform`"
        );
    }
    if (name, value) == NETWORK {
        return format!(
            "platform property {property}: actions have no network here; to permit it, set \
             `execution.sandbox.allow_network: true`"
        );
    }
    let here = match options.platform.get(name) {
        Some(accepted) => format!("this node has {}", accepted.join(", ")),
        None => "this node does not have it".to_owned(),
    };
    format!(
        "platform property {property}: {here}; see `execution.platform` and `execution.unknown_platform`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(properties: &[(&str, &str)], ignore: bool) -> Result<(), Failure> {
        let options = Options {
            platform: [("OSFamily", "linux"), ("ISA", "x86-64"), ("any", "*")]
                .map(|(name, value)| (name.to_owned(), vec![value.to_owned()]))
                .into(),
            ignore_unknown_platform: ignore,
            ..crate::testing::options()
        };
        let properties = properties.iter().map(|(name, value)| Property {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        });
        let properties = properties.collect();
        check_platform("platform", &Platform { properties }, &options)
    }

    #[test]
    fn properties_of_this_node_are_accepted() {
        for accepted in [
            &[][..],
            &[("OSFamily", "Linux")],
            &[("OSFamily", "linux"), ("ISA", "x86-64")],
            &[("any", "thing"), ("any", "")],
            &[
                ("persistentWorkerKey", "abc"),
                ("persistentWorkerProtocol", "json"),
            ],
        ] {
            assert_eq!(check(accepted, false), Ok(()));
        }
    }

    #[test]
    fn other_properties_are_unmet_unless_they_are_ignored() {
        for (name, value) in [("OSFamily", "windows"), ("ISA", "X86-64"), ("gpu", "2")] {
            let Err(Failure::Unmet(why)) = check(&[("any", "a"), (name, value)], false) else {
                panic!("{name}={value} is accepted");
            };
            assert!(why.contains(&format!("{name}={value}")), "{why}");
            assert!(why.contains("execution.platform"), "{why}");
            assert_eq!(check(&[(name, value)], true), Ok(()));
        }
        let empty = check(&[("", "a")], true);
        assert!(matches!(empty, Err(Failure::Invalid { .. })));
    }

    #[test]
    fn a_container_image_is_refused_with_the_setting_that_accepts_it() {
        let Err(Failure::Unmet(why)) = check(&[("container-image", "docker://a")], false) else {
            panic!("accepted");
        };
        assert!(
            why.contains("`container-image: '*'` in `execution.platform`"),
            "{why}"
        );
    }

    fn platform(properties: &[(&str, &str)]) -> Platform {
        let properties = properties.iter().map(|(name, value)| Property {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        });
        Platform {
            properties: properties.collect(),
        }
    }

    #[test]
    fn a_platform_of_another_node_is_admitted_and_does_not_fit_this_one() {
        let gpu = |text: &str| properties(text).all(|pair| pair == ("gpu", "2"));
        let options = Options {
            platform: [("a".to_owned(), vec!["1".to_owned()])].into(),
            peer_platforms: Some(PeerPlatforms::new(gpu)),
            ..crate::testing::options()
        };
        let admit = |properties: &[(&str, &str)], nodes| {
            admit_platform("platform", &platform(properties), &options, nodes)
        };
        let own = admit(&[("a", "1")], Nodes::All).unwrap();
        let of_peer = admit(&[("persistentWorkerKey", "k"), ("gpu", "2")], Nodes::All).unwrap();
        assert!(fits(&options, &own) && fits(&options, ""));
        assert!(!fits(&options, &of_peer));
        assert!(Arc::ptr_eq(
            &of_peer,
            &admit(&[("gpu", "2")], Nodes::All).unwrap()
        ));
        for unmet in [
            admit(&[("gpu", "2")], Nodes::Guest),
            admit(&[("gpu", "2")], Nodes::Here),
        ] {
            assert!(matches!(unmet, Err(Failure::Unmet(_))), "{unmet:?}");
        }
        let unmet = admit(&[("a", "1"), ("gpu", "2")], Nodes::All);
        assert!(matches!(unmet, Err(Failure::NoNode { .. })), "{unmet:?}");
        let malformed = admit(&[("a", "1\0")], Nodes::All);
        assert!(matches!(malformed, Err(Failure::Invalid { .. })));
    }

    #[test]
    fn a_platform_for_this_node_only_fits_it_and_no_other() {
        let options = Options {
            platform: [("a".to_owned(), vec!["1".to_owned()])].into(),
            peer_platforms: Some(PeerPlatforms::new(|_| true)),
            ..crate::testing::options()
        };
        let here = admit_platform("", &platform(&[("a", "1")]), &options, Nodes::Here).unwrap();
        assert!(fits(&options, &here));
        assert_eq!(properties(&here).next(), Some(("", "")));
        let none = admit_platform("", &platform(&[]), &options, Nodes::Here).unwrap();
        assert!(fits(&options, &none));
    }

    #[test]
    fn an_entry_point_admits_what_another_node_runs() {
        let is_gpu = |text: &str| properties(text).all(|(name, _)| name == "gpu");
        let options = Options {
            concurrency: 0,
            peer_platforms: Some(PeerPlatforms::new(is_gpu)),
            ..crate::testing::options()
        };
        let admit = |properties: &[(&str, &str)], nodes| {
            admit_platform("platform", &platform(properties), &options, nodes)
        };
        for met in [&[][..], &[("gpu", "1")]] {
            assert!(admit(met, Nodes::All).is_ok());
            let here = admit(met, Nodes::Here);
            assert!(matches!(here, Err(Failure::Unmet(_))), "{here:?}");
        }
        assert!(admit(&[("a", "1")], Nodes::All).is_err());
    }

    #[test]
    fn the_text_of_a_platform_does_not_depend_on_the_order() {
        let peers = PeerPlatforms::new(|_| true);
        let one = peers.text(&platform(&[("b", ""), ("a", "2"), ("a", "1")]), false);
        let other = peers.text(&platform(&[("a", "1"), ("b", ""), ("a", "2")]), false);
        assert_eq!(one, other);
        let read: Vec<_> = properties(&one).collect();
        assert_eq!(read, [("a", "1"), ("a", "2"), ("b", "")]);
        assert_eq!(properties("").next(), None);
    }
}
