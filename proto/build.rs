//! Generates message types, clients and servers from a `FileDescriptorSet`, without protoc. Describes each
//! message type: the numbers of its fields, and its shape.
//!
//! The set is the committed `reapi.binpb`, or the file that `REAPI_DESCRIPTOR_SET` names.

use std::{
    env,
    error::Error,
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MessageOptions,
    field_descriptor_proto::{Label, Type},
};

/// The package of the types that come with prost.
const WELL_KNOWN: &str = "google.protobuf";
const PROST: &str = "::prost_types::";
/// The package of options, which no message has in it.
const OPTIONS: &str = "google.api";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=REAPI_DESCRIPTOR_SET");
    let path = env::var_os("REAPI_DESCRIPTOR_SET").map_or_else(
        || -> Result<PathBuf, env::VarError> {
            Ok(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("reapi.binpb"))
        },
        |path| Ok(PathBuf::from(path)),
    )?;
    println!("cargo:rerun-if-changed={}", path.display());

    let encoded = fs::read(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let set = FileDescriptorSet::decode(encoded.as_slice())
        .map_err(|e| format!("decoding {}: {e}", path.display()))?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("reapi.binpb"), &encoded)?;
    fs::write(out.join("descriptions.rs"), descriptions(&set)?)?;
    tonic_prost_build::configure()
        .bytes(".")
        .include_file("reapi.rs")
        .compile_fds(set)?;
    Ok(())
}

/// Describes every message type, in Rust.
fn descriptions(set: &FileDescriptorSet) -> Result<String, fmt::Error> {
    let mut code = String::new();
    for file in &set.file {
        if ![WELL_KNOWN, OPTIONS].contains(&file.package()) {
            for message in &file.message_type {
                let name = format!(".{}.{}", file.package(), message.name());
                describe(message, &name, &mut code)?;
            }
        }
    }
    Ok(code)
}

/// Writes the numbers of the fields of a message type, and its shape.
fn describe(message: &DescriptorProto, name: &str, code: &mut String) -> fmt::Result {
    for nested in message.nested_type.iter().filter(|nested| !is_map(nested)) {
        describe(nested, &format!("{name}.{}", nested.name()), code)?;
    }
    let rust_name = rust_name(name);
    writeln!(code, "impl {rust_name} {{")?;
    for field in &message.field {
        let (name, number) = (field.name().to_uppercase(), field.number());
        writeln!(code, "    pub const {name}: u32 = {number};")?;
    }
    let shape = shape(message);
    writeln!(
        code,
        "}}\nimpl Shaped for {rust_name} {{\n    const SHAPE: Shape = {shape};\n}}"
    )
}

/// Whether the type is that of the entries of a map.
fn is_map(nested: &DescriptorProto) -> bool {
    nested
        .options
        .as_ref()
        .is_some_and(MessageOptions::map_entry)
}

/// Returns the shape of a message.
fn shape(message: &DescriptorProto) -> String {
    let fields = message.field.iter();
    let fields: Vec<_> = fields
        .filter_map(|field| shape_of(field, message))
        .collect();
    format!("Shape(&[{}])", fields.join(", "))
}

/// Returns the field of a shape; `None` if the field counts as a string, which it may not be. Types that
/// come with prost count as strings too: those in use are flat.
fn shape_of(field: &FieldDescriptorProto, message: &DescriptorProto) -> Option<String> {
    let mut maps = message.nested_type.iter().filter(|nested| is_map(nested));
    let map = maps.find(|map| field.type_name().ends_with(map.name()));
    let (name, shape) = if let Some(map) = map {
        let entry: Vec<_> = map.field.iter().map(rust_type).collect();
        // A table has more capacity to spare than a vector: counts each entry twice.
        (format!("[({}); 2]", entry.join(", ")), shape(map))
    } else {
        let name = rust_type(field);
        (name.clone(), format!("{name}::SHAPE"))
    };
    let repeats = field.label() == Label::Repeated;
    let content = match field.r#type() {
        Type::Message if !name.starts_with(PROST) => format!("Message({shape})"),
        Type::Bytes => "Blob".to_owned(),
        _ if !repeats => return None,
        Type::Message | Type::String => "Text".to_owned(),
        _ => "Numbers".to_owned(),
    };
    let (number, element) = (field.number(), if repeats { &name } else { "()" });
    Some(format!(
        "Field {{ number: {number}, element: size_of::<{element}>(), content: Content::{content} }}"
    ))
}

/// Returns the type that prost makes of the field, or one of the same size.
fn rust_type(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message => rust_name(field.type_name()),
        Type::String => "String".to_owned(),
        Type::Bytes => "::prost::bytes::Bytes".to_owned(),
        Type::Double
        | Type::Int64
        | Type::Uint64
        | Type::Sint64
        | Type::Fixed64
        | Type::Sfixed64 => "u64".to_owned(),
        _ => "u32".to_owned(),
    }
}

/// Returns the path of the type that prost makes of the message with this full name.
fn rust_name(name: &str) -> String {
    let mut path: Vec<_> = name.trim_start_matches('.').split('.').collect();
    let last = path.pop().unwrap_or_default();
    if path.join(".") == WELL_KNOWN {
        return format!("{PROST}{last}");
    }
    let modules = path.into_iter().map(snake_case).collect::<Vec<_>>();
    format!("crate::stubs::{}::{last}", modules.join("::"))
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (at, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
