"""The proto_library of Bazel itself."""

proto_library = native.proto_library
