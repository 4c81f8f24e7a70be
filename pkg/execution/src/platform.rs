//! The platform that an action requires, beside that of this node.

use gorego_storage::shorten;
use reapi::v2::Platform;

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
        accepted.iter().any(|accepted| {
            accepted == ANY
                || accepted == value
                || (name == OS_FAMILY && accepted.eq_ignore_ascii_case(value))
        })
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
    use reapi::v2::platform::Property;

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
}
