//! Commands as text for a shell.

/// Quotes arguments for a shell, as one line unless they contain line breaks.
pub fn quote(arguments: &[String]) -> String {
    let quoted = arguments.iter().map(|argument| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte);
        if !argument.is_empty() && argument.bytes().all(plain) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Returns a script that runs a command in its working directory, with exactly its environment, after the lines `before`.
pub fn render(
    before: &str,
    directory: &str,
    environment: &[(String, String)],
    arguments: &[String],
) -> String {
    let variables = environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let start = ["exec", "/usr/bin/env", "-i", "--"].map(str::to_owned);
    let start = start.into_iter().chain(variables).collect::<Vec<_>>();
    let [directory, start, arguments] = [
        quote(&[directory.to_owned()]),
        quote(&start),
        quote(arguments),
    ];
    format!("#!/bin/sh\n{before}cd {directory} || exit\n{start} \\\n  {arguments}\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_has_the_arguments_and_the_environment_exactly() {
        let odd = [
            "",
            " ",
            "a b",
            "it's",
            "$HOME `x` \\",
            "line\nbreak",
            "-n",
            "*",
            "ü=ö",
        ];
        let odd: Vec<String> = odd.map(str::to_owned).to_vec();
        let print = [
            "/bin/sh",
            "-c",
            "printf '<%s>' \"$@\"; /usr/bin/env; pwd",
            "name",
        ];
        let arguments: Vec<_> = print
            .iter()
            .map(|&part| part.to_owned())
            .chain(odd.clone())
            .collect();
        let environment = [("A".to_owned(), "x 'y' $z".to_owned())];
        let script = render("", "/usr/../", &environment, &arguments);
        let ran = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .env("B", "b")
            .output()
            .unwrap();
        let output = String::from_utf8(ran.stdout).unwrap();
        let expected = format!("<{}>", odd.join("><"));
        let rest = output
            .strip_prefix(&expected)
            .unwrap_or_else(|| panic!("{output}"));
        let own = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
        let lines = rest
            .lines()
            .filter(|line| !own.iter().any(|own| line.starts_with(own)));
        assert_eq!(lines.collect::<Vec<_>>(), ["A=x 'y' $z", "/"]);
    }
}
