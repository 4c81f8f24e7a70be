/// All problems of the configuration: at least one, a line each. A line names the origin, the key, the
/// value and the accepted ones.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

impl From<String> for Problems {
    fn from(problem: String) -> Self {
        Self(vec![problem])
    }
}
