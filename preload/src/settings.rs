//! What the environment tells the interposer; read once, in cuInit.
//!
//! Owns: the variables and their messages. Does not own: who sets them (the plugin, agarun).

use std::path::PathBuf;
use std::time::Duration;

/// What to do without an assigner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// Go on without scheduling.
    Open,
    /// Every submission fails.
    Fail,
}

/// Whether memory is moved to the host while others compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    On,
    Off,
}

/// A client's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) socket: PathBuf,
    pub(crate) gpus: u32,
    /// UUIDs of the GPUs that the process may use; empty: all of the assigner's.
    pub(crate) eligible: Vec<String>,
    /// UUIDs of as many GPUs as the client is given: what ordinals mean where the assigner is not asked.
    pub(crate) uuids: Vec<String>,
    pub(crate) on_failure: OnFailure,
    pub(crate) grace: Duration,
    pub(crate) step: String,
    pub(crate) rank: u32,
    pub(crate) paging: Paging,
    /// Device memory that the client may have on each GPU; 0: all of it.
    pub(crate) memory: u64,
    pub(crate) priority: i32,
    /// Empty: its user's.
    pub(crate) tenant: String,
    /// Empty: none.
    pub(crate) gang: String,
    pub(crate) gang_size: u32,
    /// Empty: the one without a name.
    pub(crate) queue: String,
}

/// A variable that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value}: not {expected}; correct it, or unset it for the default ({default})")]
pub(crate) struct BadSetting {
    name: &'static str,
    value: String,
    expected: &'static str,
    default: &'static str,
}

impl Settings {
    /// `None` when the process is no client: nothing names a socket.
    pub(crate) fn read(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Settings>, BadSetting> {
        let Some(socket) = variable("ACB_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let number = |name, expected, default| match variable(name).filter(|text| !text.is_empty())
        {
            None => Ok(None),
            Some(text) => match text.parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(BadSetting { name, value: text, expected, default }),
            },
        };
        let gpus = match number("ACB_GPUS", "a number of GPUs from 1", "1")? {
            Some(0) => {
                return Err(BadSetting {
                    name: "ACB_GPUS",
                    value: "0".into(),
                    expected: "a number of GPUs from 1",
                    default: "1",
                });
            }
            gpus => gpus.unwrap_or(1),
        };
        let on_failure = match variable("ACB_ON_FAILURE").as_deref() {
            None | Some("" | "open") => OnFailure::Open,
            Some("fail") => OnFailure::Fail,
            Some(other) => {
                return Err(BadSetting {
                    name: "ACB_ON_FAILURE",
                    value: other.into(),
                    expected: "open or fail",
                    default: "open",
                });
            }
        };
        let paging = match variable("ACB_PAGER").as_deref() {
            None | Some("" | "on") => Paging::On,
            Some("off") => Paging::Off,
            Some(other) => {
                return Err(BadSetting {
                    name: "ACB_PAGER",
                    value: other.into(),
                    expected: "on or off",
                    default: "on",
                });
            }
        };
        let memory = match variable("ACB_MEMORY").filter(|text| !text.is_empty()) {
            None => 0,
            Some(text) => text.parse().map_err(|_| BadSetting {
                name: "ACB_MEMORY",
                value: text,
                expected: "a number of bytes",
                default: "all of the GPU's",
            })?,
        };
        let grace = number("ACB_GRACE_MS", "a number of milliseconds", "10000")?.unwrap_or(10_000);
        let priority = match variable("ACB_PRIORITY").filter(|text| !text.is_empty()) {
            None => 0,
            Some(text) => match text.parse::<i32>() {
                Ok(number) if (-100..=100).contains(&number) => number,
                _ => {
                    return Err(BadSetting {
                        name: "ACB_PRIORITY",
                        value: text,
                        expected: "a number from -100 to 100",
                        default: "0",
                    });
                }
            },
        };
        Ok(Some(Settings {
            socket: socket.into(),
            gpus,
            eligible: list(variable("ACB_ELIGIBLE")),
            uuids: list(variable("ACB_UUIDS")),
            on_failure,
            grace: Duration::from_millis(grace.into()),
            step: variable("ACB_STEP").unwrap_or_default(),
            rank: number("ACB_RANK", "a rank", "0")?.unwrap_or(0),
            paging,
            memory,
            priority,
            tenant: variable("ACB_TENANT").unwrap_or_default(),
            gang: variable("ACB_GANG").unwrap_or_default(),
            gang_size: number("ACB_GANG_SIZE", "a number of programs", "0, no gang")?.unwrap_or(0),
            queue: variable("ACB_QUEUE").unwrap_or_default(),
        }))
    }
}

/// What stands between commas.
fn list(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, BadSetting> {
        Settings::read(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_a_socket_there_is_no_client() {
        assert_eq!(read(&[("ACB_GPUS", "many")]), Ok(None));
        assert_eq!(read(&[("ACB_SOCKET", "")]), Ok(None));
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let settings = read(&[("ACB_SOCKET", "/s")]).unwrap().unwrap();
        assert_eq!(settings.gpus, 1);
        assert_eq!(settings.on_failure, OnFailure::Open);
        assert_eq!(settings.grace, Duration::from_secs(10));
        assert!(settings.eligible.is_empty());
    }

    #[test]
    fn eligible_gpus_stand_between_commas() {
        let settings = read(&[("ACB_SOCKET", "/s"), ("ACB_ELIGIBLE", "GPU-a,GPU-b,")]);
        assert_eq!(settings.unwrap().unwrap().eligible, ["GPU-a", "GPU-b"]);
    }

    #[test]
    fn a_bad_value_is_named_with_its_remedy() {
        for (name, value) in [
            ("ACB_GANG_SIZE", "all"),
            ("ACB_PRIORITY", "101"),
            ("ACB_PRIORITY", "high"),
            ("ACB_GPUS", "0"),
            ("ACB_GPUS", "-1"),
            ("ACB_GRACE_MS", "1s"),
            ("ACB_ON_FAILURE", "close"),
            ("ACB_RANK", "x"),
            ("ACB_PAGER", "no"),
            ("ACB_MEMORY", "10G"),
        ] {
            let message = read(&[("ACB_SOCKET", "/s"), (name, value)]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{name}={value}: ")), "{message}");
            assert!(message.contains("unset it"), "{message}");
        }
    }
}
