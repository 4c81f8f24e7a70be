//! The arguments of an action in a persistent worker: those that start the worker, and those of the request.

/// The argument that makes a tool a persistent worker.
const PERSISTENT: &str = "--persistent_worker";
/// The most flag files that an argument leads through, each named by the one before.
const MAX_DEPTH: usize = 32;
/// The most bytes of the flag files of a request, with the memory that each line takes besides its text.
const MAX_BYTES: usize = 32 << 20;
const LINE: usize = 40;

/// The arguments of an action, split.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Arguments {
    /// The command that starts the worker.
    pub(super) start: Vec<String>,
    /// The flag files.
    pub(super) flags: Vec<String>,
}

impl Arguments {
    /// Splits the arguments of a command. `None` if it has no flag file, so that there is nothing to request.
    pub(super) fn split(arguments: &[String]) -> Option<Self> {
        let (program, arguments) = arguments.split_first()?;
        let (flags, others): (Vec<_>, Vec<_>) = arguments
            .iter()
            .cloned()
            .partition(|argument| is_flag_file(argument));
        let start = [program.clone()].into_iter().chain(others);
        let start = start.chain([PERSISTENT.to_owned()]).collect();
        (!flags.is_empty()).then_some(Self { start, flags })
    }

    /// Returns the arguments of the request: an argument `@FILE` stands for the lines of the file, which `read` returns.
    /// An argument that begins with `@@`, a label of an external repository, and `--flagfile=FILE` stand for themselves,
    /// as in Bazel.
    pub(super) fn expand(
        &self,
        mut read: impl FnMut(&str) -> Result<String, String>,
    ) -> Result<Vec<String>, String> {
        let mut expanded = Vec::new();
        let mut bytes = 0;
        // The arguments and the lines of files that are still to be expanded, the next one last.
        let mut left: Vec<(String, usize)> = self
            .flags
            .iter()
            .rev()
            .map(|flag| (flag.clone(), 0))
            .collect();
        while let Some((argument, depth)) = left.pop() {
            let Some(file) = file_of(&argument) else {
                expanded.push(argument);
                continue;
            };
            if depth == MAX_DEPTH {
                return Err(format!("flag file {file:?} is {depth} files deep"));
            }
            let content = read(file)?;
            bytes += content.len() + LINE * content.lines().count();
            if bytes > MAX_BYTES {
                return Err(format!("the flag files take more than {MAX_BYTES} bytes"));
            }
            let lines = content.lines().rev();
            left.extend(lines.map(|line| (line.to_owned(), depth + 1)));
        }
        Ok(expanded)
    }
}

/// Returns whether an argument belongs to the request: `@FILE`, `-flagfile=FILE` or `--flagfile=FILE`.
fn is_flag_file(argument: &str) -> bool {
    let prefixes = ["@", "--flagfile=", "-flagfile="];
    let mut files = prefixes
        .iter()
        .filter_map(|prefix| argument.strip_prefix(prefix));
    files.any(|file| !file.is_empty() && !file.contains(['\n', '\r']))
}

/// Returns the path of the file that an argument stands for.
fn file_of(argument: &str) -> Option<&str> {
    let file = argument.strip_prefix('@')?;
    (!file.starts_with('@') && !file.contains("//")).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn split(arguments: &[&str]) -> Option<Arguments> {
        Arguments::split(&strings(arguments))
    }

    #[test]
    fn flag_files_belong_to_the_request_and_other_arguments_start_the_worker() {
        let arguments = [
            "tool",
            "-a",
            "@flags",
            "b",
            "--flagfile=c",
            "-flagfile=d",
            "@",
            "---flagfile=e",
            "@@f",
        ];
        let split = split(&arguments).unwrap();
        let start = [
            "tool",
            "-a",
            "b",
            "@",
            "---flagfile=e",
            "--persistent_worker",
        ];
        assert_eq!(split.start, strings(&start));
        let flags = ["@flags", "--flagfile=c", "-flagfile=d", "@@f"];
        assert_eq!(split.flags, strings(&flags));
    }

    #[test]
    fn a_command_without_a_flag_file_has_no_request() {
        assert_eq!(split(&["tool", "a", "--flagfile=", "@"]), None);
        assert_eq!(split(&["@tool"]), None);
        assert_eq!(split(&[]), None);
    }

    #[test]
    fn flag_files_are_expanded_in_order_and_within_each_other() {
        let read = |file: &str| match file {
            "one" => Ok("a\n@two\r\n\n@@b\nlast".to_owned()),
            "two" => Ok("c d\n".to_owned()),
            other => Err(other.to_owned()),
        };
        let split = |arguments: &[&str]| split(arguments).unwrap().expand(read);
        let expanded = split(&["tool", "@one", "--flagfile=two", "@r//label", "@two"]);
        let expected = [
            "a",
            "c d",
            "",
            "@@b",
            "last",
            "--flagfile=two",
            "@r//label",
            "c d",
        ];
        assert_eq!(expanded, Ok(strings(&expected)));
        assert_eq!(split(&["tool", "@three"]), Err("three".to_owned()));
    }

    #[test]
    fn flag_files_are_limited_in_depth_and_size() {
        let split = split(&["tool", "@a"]).unwrap();
        let error = split.expand(|_| Ok("@a".to_owned())).unwrap_err();
        assert!(error.contains("deep"), "{error}");
        let error = split.expand(|_| Ok(" ".repeat(MAX_BYTES + 1)));
        assert!(error.unwrap_err().contains("bytes"));
        // Each of them is small.
        let wide = |_: &str| Ok("@a\n".repeat(1 << 20));
        assert!(split.expand(wide).unwrap_err().contains("bytes"));
    }
}
