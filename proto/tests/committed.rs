//! Compares the committed descriptor set, from which Cargo generates the stubs, with that of the published
//! protos, from which Bazel generates them.
#![cfg(test)]

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};

const COMMITTED: &[u8] = include_bytes!("../reapi.binpb");
const MEND: &str = "mend it with: tools/bazel run //proto:update_descriptor_set";

/// Returns the files of a set by name. Leaves out the options and types of protobuf and Google's APIs, which
/// change between releases without an effect on the stubs, and does not decode custom options, whose order
/// depends on protoc.
fn files(set: &[u8]) -> BTreeMap<String, FileDescriptorProto> {
    let set = FileDescriptorSet::decode(set).unwrap_or_else(|e| panic!("{e}; {MEND}"));
    let files = set.file.into_iter();
    files
        .map(|file| (file.name().to_owned(), file))
        .filter(|(name, _)| {
            !name.starts_with("google/protobuf/") && !name.starts_with("google/api/")
        })
        .collect()
}

#[test]
fn the_committed_descriptor_set_is_the_published_one() {
    let committed = files(COMMITTED);
    let used = files(reapi::FILE_DESCRIPTOR_SET);
    let names = |files: &BTreeMap<_, _>| files.keys().cloned().collect::<Vec<String>>();
    assert_eq!(
        names(&committed),
        names(&used),
        "proto/reapi.binpb has other files than are published; {MEND}"
    );
    for (name, file) in &used {
        assert!(
            &committed[name] == file,
            "proto/reapi.binpb differs in {name}; {MEND}"
        );
    }
}

/// Encodes a length-delimited field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    [&[number << 3 | 2, length], bytes].concat()
}

#[test]
fn the_order_of_a_methods_options_does_not_matter() {
    let set = |options: [&[u8]; 2]| {
        let method = [field(1, b"Get"), field(4, &options.concat())].concat();
        let service = [field(1, b"Service"), field(2, &method)].concat();
        let file = [field(1, b"a.proto"), field(6, &service)].concat();
        files(&field(1, &file))
    };
    let [one, other] = [field(14, b"http"), field(15, b"signature")];
    let [forth, back] = [set([&one, &other]), set([&other, &one])];
    assert_eq!(forth["a.proto"].service[0].method[0].name(), "Get");
    assert_eq!(forth, back);
}

#[test]
fn the_descriptor_set_has_the_services_that_are_served() {
    let files = files(COMMITTED);
    let services: Vec<&str> = files
        .values()
        .flat_map(|file| file.service.iter().map(ServiceDescriptorProto::name))
        .collect();
    for service in [
        "ActionCache",
        "ByteStream",
        "Capabilities",
        "ContentAddressableStorage",
        "Execution",
    ] {
        assert!(
            services.contains(&service),
            "{service} is not in {services:?}"
        );
    }
}
