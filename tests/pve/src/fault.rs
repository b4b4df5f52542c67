//! Faults on request: rules that say which request goes wrong, and how.
//!
//! As TOML:
//! ```toml
//! [[rule]]
//! method = "POST"
//! path = "/nodes/*/qemu/*/status/start"   # one `*` per segment; `**` for the rest
//! nth = 2                                 # the second one that matches; without it, every one
//! action = "task-fails"
//! text = "start failed: QEMU exited with code 1"
//! ```

use std::sync::Mutex;

use serde::Deserialize;

use crate::held;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Answers with this instead of doing anything.
    Refuse {
        /// The HTTP status.
        status: u16,
        /// Reason and message.
        message: String,
    },
    /// Waits, then goes on.
    Delay {
        /// Seconds, scaled.
        seconds: f64,
    },
    /// Closes the connection without doing anything.
    DropBefore,
    /// Does it, then closes the connection without an answer.
    DropAfter,
    /// Answers with a pseudo code (595, 596, 599) and an empty body.
    Pseudo {
        /// The status.
        status: u16,
        /// Whether it is done all the same.
        #[serde(default)]
        done: bool,
    },
    /// The task that the request starts fails.
    TaskFails {
        /// Its end.
        text: String,
        /// Whether its work is done before.
        #[serde(default)]
        done: bool,
    },
    /// The task that the request starts never ends by itself.
    TaskHangs {
        /// Whether it does not heed its interruption either: it is killed after 5 s, with its locks in the
        /// configuration.
        #[serde(default)]
        deaf: bool,
    },
    /// The task that the request starts ends with warnings.
    TaskWarns {
        /// How many.
        count: u32,
    },
    /// The guest agent of the VM in the path answers no more until the VM stops.
    AgentDies,
    /// The machine of the VM in the path ends at once, before the request is looked at.
    MachineDies,
    /// The storage takes no more data.
    StorageFull {
        /// Its name.
        storage: String,
    },
    /// Somebody else holds a VM's file lock.
    LockHeld {
        /// Seconds, scaled.
        seconds: f64,
        /// Which VM's.
        #[serde(default)]
        of: Of,
    },
    /// Somebody else's work bars a VM with a lock in its configuration, as a backup does.
    ConfigLocked {
        /// `backup`, `snapshot`, …
        lock: String,
        /// Seconds, scaled; without them, for ever.
        #[serde(default)]
        seconds: Option<f64>,
        /// Which VM.
        #[serde(default)]
        of: Of,
    },
    /// Somebody else has just taken the VMID.
    VmidTaken {
        /// With a VM or with a container.
        #[serde(default)]
        kind: Guest,
        /// On which node; without one, on the one that answers.
        #[serde(default)]
        node: Option<String>,
        /// Before the call, or between a clone's call and its task.
        #[serde(default)]
        when: When,
    },
    /// The node gets a new certificate; connections made from now on see it.
    CertificateChanged,
    /// pveproxy's `ALLOW_FROM` names the client no more: connections made from now on are closed at once.
    NotAllowed,
    /// pveproxy is reloaded and pvedaemon restarted: protected calls get 595 for a second.
    Reload,
}

/// Which VM of a request; only a clone's has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The one that is made or changed.
    #[default]
    Target,
    /// The one that is cloned.
    Source,
}

/// What kind of guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// A VM.
    #[default]
    Qemu,
    /// A container.
    Lxc,
}

/// When something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Before the call is looked at.
    #[default]
    Call,
    /// When its task begins.
    Task,
}

/// Which request, and what goes wrong.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    /// `GET`, `POST`, …; any when absent.
    #[serde(default)]
    pub method: Option<String>,
    /// The path below `/api2/json`.
    pub path: String,
    /// Only the nth match, counted from 1.
    #[serde(default)]
    pub nth: Option<u32>,
    /// What goes wrong.
    #[serde(flatten)]
    pub action: Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

impl Rule {
    /// Reads rules from TOML: a list of tables called `rule`.
    ///
    /// # Errors
    /// Wrong TOML, or an action that does not exist.
    pub fn parse(text: &str) -> Result<Vec<Self>, toml::de::Error> {
        toml::from_str::<File>(text).map(|file| file.rule)
    }
}

/// The rules at work, each with the number of requests that matched it.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<(Rule, u32)>>,
}

impl Faults {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        Self { rules: Mutex::new(rules.into_iter().map(|rule| (rule, 0)).collect()) }
    }

    pub(crate) fn add(&self, rule: Rule) {
        held(&self.rules).push((rule, 0));
    }

    pub(crate) fn clear(&self) {
        held(&self.rules).clear();
    }

    /// What goes wrong with this request; counts it.
    pub(crate) fn matching(&self, method: &str, path: &str) -> Vec<Action> {
        let mut rules = held(&self.rules);
        let mut actions = Vec::new();
        for (rule, count) in rules.iter_mut() {
            let right_method = rule.method.as_deref().is_none_or(|wanted| wanted == method);
            if right_method && path_matches(&rule.path, path) {
                *count += 1;
                if rule.nth.is_none_or(|nth| nth == *count) {
                    actions.push(rule.action.clone());
                }
            }
        }
        actions
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let mut wanted = pattern.split('/').filter(|part| !part.is_empty());
    let mut given = path.split('/').filter(|part| !part.is_empty());
    loop {
        match (wanted.next(), given.next()) {
            (None, None) | (Some("**"), _) => return true,
            (Some("*"), Some(_)) => {}
            (Some(part), Some(other)) if part == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_by_method_path_and_count() {
        let text = r#"
            [[rule]]
            method = "POST"
            path = "/nodes/*/qemu/*/status/start"
            nth = 2
            action = "task-fails"
            text = "no"
            [[rule]]
            path = "/nodes/**"
            action = "delay"
            seconds = 1.5
        "#;
        let faults = Faults::new(Rule::parse(text).unwrap());
        let start = "/nodes/a/qemu/100/status/start";
        assert_eq!(faults.matching("POST", start), [Action::Delay { seconds: 1.5 }]);
        let fails = Action::TaskFails { text: "no".into(), done: false };
        assert_eq!(faults.matching("POST", start), [fails, Action::Delay { seconds: 1.5 }]);
        assert_eq!(faults.matching("GET", "/version"), []);
        assert!(Rule::parse("[[rule]]\npath = \"/x\"\naction = \"nonsense\"").is_err());
    }
}
