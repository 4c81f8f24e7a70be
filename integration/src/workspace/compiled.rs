//! A package whose compiler can be a persistent worker.

use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::{write, write_base};

/// The number of classes for each protocol.
const CLASSES: usize = 3;

/// Creates a workspace of six Java classes in the package `compiled`, each of which is compiled by an action of its own.
/// The compiler can be a persistent worker. Its protocol is protobuf for half of them, and JSON for the targets with the
/// attribute `json`.
pub fn write_compiled(dir: &Path, json: &str) {
    write_base(dir);
    let mut build = String::from(BUILD);
    for (protocol, attribute) in [("proto", ""), ("json", json)] {
        for class in 0..CLASSES {
            let name = format!("{protocol}{class}");
            let source = format!("class {name} {{ int value() {{ return {class}; }} }}\n");
            write(dir, &format!("compiled/{name}.java"), &source);
            let _ = writeln!(
                build,
                "compiled(name = \"{name}\", src = \"{name}.java\", protocol = \"{protocol}\", {attribute})"
            );
        }
    }
    write(dir, "compiled/BUILD.bazel", &build);
    write(dir, "compiled/defs.bzl", RULES);
    write(dir, "compiled/Compiler.java", COMPILER);
    write(dir, "compiled/compiler.sh", SCRIPT);
    let script = dir.join("compiled/compiler.sh");
    let executable = fs::set_permissions(script, Permissions::from_mode(0o755));
    executable.expect("the script was just written");
}

const BUILD: &str = r#"load(":defs.bzl", "compiled")

sh_binary(name = "compiler", srcs = ["compiler.sh"], data = ["Compiler.java"])

"#;

const RULES: &str = r#"
def _compiled_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    args = ctx.actions.args()
    args.use_param_file("@%s", use_always = True)
    args.set_param_file_format("multiline")
    args.add("-d").add(out.path)
    args.add(ctx.file.src)
    ctx.actions.run(
        executable = ctx.executable._compiler,
        arguments = [ctx.attr.protocol, args],
        inputs = [ctx.file.src],
        outputs = [out],
        mnemonic = "Compiled",
        execution_requirements = {"supports-workers": "1"},
    )
    return [DefaultInfo(files = depset([out]))]

compiled = rule(
    implementation = _compiled_impl,
    attrs = {
        "src": attr.label(allow_single_file = True),
        "protocol": attr.string(),
        "_compiler": attr.label(default = ":compiler", executable = True, cfg = "exec"),
    },
)
"#;

const SCRIPT: &str = r#"#!/bin/sh
exec /usr/bin/java -XX:TieredStopAtLevel=1 "$0.runfiles/_main/compiled/Compiler.java" "$@"
"#;

/// Compiles what a flag file says, after the name of a protocol. As a persistent worker, reads and writes the messages of
/// that protocol.
const COMPILER: &str = r#"
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import javax.tools.ToolProvider;

class Compiler {
    public static void main(String[] args) throws IOException {
        String last = args[args.length - 1];
        if (!last.equals("--persistent_worker")) {
            List<String> lines = Files.readAllLines(Path.of(last.substring(1)));
            System.exit(compile(lines, System.err));
        } else if (args[0].equals("json")) {
            serveJson();
        } else {
            serve();
        }
    }

    /** Serves requests in JSON, whose arguments have no quotes. */
    static void serveJson() throws IOException {
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in));
        for (String request; (request = requests.readLine()) != null; ) {
            String arguments = request.split("\"arguments\":\\[\"")[1].split("\"\\]")[0];
            int code = compile(Arrays.asList(arguments.split("\",\"")), System.err);
            System.out.println("{\"exitCode\": " + code + "}");
        }
    }

    static void serve() throws IOException {
        for (int length; (length = read(System.in)) >= 0; ) {
            InputStream request = new ByteArrayInputStream(System.in.readNBytes(length));
            List<String> arguments = new ArrayList<>();
            for (int tag; (tag = read(request)) >= 0; ) {
                int value = read(request);
                byte[] field = (tag & 7) == 2 ? request.readNBytes(value) : null;
                if (tag >> 3 == 1) {
                    arguments.add(new String(field, StandardCharsets.UTF_8));
                }
            }
            ByteArrayOutputStream log = new ByteArrayOutputStream();
            ByteArrayOutputStream response = new ByteArrayOutputStream();
            response.write(1 << 3);
            write(response, compile(arguments, log));
            response.write(2 << 3 | 2);
            write(response, log.size());
            log.writeTo(response);
            write(System.out, response.size());
            response.writeTo(System.out);
            System.out.flush();
        }
    }

    static int compile(List<String> arguments, OutputStream log) {
        String[] all = arguments.toArray(new String[0]);
        return ToolProvider.getSystemJavaCompiler().run(null, log, log, all);
    }

    /** Reads a varint; -1 at the end. */
    static int read(InputStream in) throws IOException {
        for (int value = 0, shift = 0; ; shift += 7) {
            int next = in.read();
            if (next < 0) {
                return -1;
            }
            value |= (next & 127) << shift;
            if (next < 128) {
                return value;
            }
        }
    }

    static void write(OutputStream out, int value) throws IOException {
        for (; value > 127; value >>>= 7) {
            out.write(value & 127 | 128);
        }
        out.write(value);
    }
}
"#;
