//! What a newcomer does wrong, one case after the other: the exit code, and a message that names the thing, the value
//! and what to do. docs/first-errors.md shows the first part of each.

use std::{collections::BTreeMap, net::TcpListener};

use crate::stage::{Ended, Stage, content};

/// A command line that is wrong. `AT` stands for a provider and a model that are right.
pub(crate) struct Case {
    name: &'static str,
    /// What lies in the folder beside `images.csv`.
    given: fn(&Stage),
    line: &'static str,
    /// The key, in every provider's variable.
    key: Option<&'static str>,
    code: i32,
    says: &'static [&'static str],
}

/// The page that shows what a newcomer may meet.
const PAGE: &str = include_str!("../../../docs/first-errors.md");
pub(crate) const AT: &str = "--provider api --models m";

impl Case {
    pub(crate) const fn new(
        name: &'static str,
        line: &'static str,
        code: i32,
        says: &'static [&'static str],
    ) -> Self {
        Self { name, given: nothing, line, key: Some(crate::stage::KEY), code, says }
    }

    pub(crate) const fn given(self, given: fn(&Stage)) -> Self {
        Self { given, ..self }
    }

    pub(crate) const fn key(self, key: Option<&'static str>) -> Self {
        Self { key, ..self }
    }

    /// What was there is as it was, and nothing was paid for; where the command line was wrong, nothing was begun.
    async fn holds(&self) {
        let stage = Stage::new(0).await;
        stage.manifest("images.csv", 0, 3);
        (self.given)(&stage);
        let before = contents(&stage);
        let ended = self.run(&stage).await;
        ended.assert(self.code, self.says, self.name);
        // The page shows them as code in a table, where a bar is written with a backslash.
        let shown = PAGE.replace("\\|", "|");
        assert!(
            shown.contains(self.says[0]),
            "{}: docs/first-errors.md does not show `{}`",
            self.name,
            self.says[0]
        );
        let after = contents(&stage);
        for (name, was) in &before {
            assert_eq!(after.get(name), Some(was), "{}: {name} is not as it was", self.name);
        }
        if self.code == 2 {
            assert_eq!(after.len(), before.len(), "{}: something was begun: {:?}", self.name, stage.names());
        }
        assert_eq!(stage.bill(), 0, "{}: something was paid for", self.name);
    }

    async fn run(&self, stage: &Stage) -> Ended {
        let line = self.line.replace("AT", AT);
        let mut command = stage.command(&line);
        for variable in ["GENERIC_API_KEY", "RESTB_CLIENT_KEY", "TILITER_API_KEY"] {
            match self.key {
                Some(key) => command.env(variable, key),
                None => command.env_remove(variable),
            };
        }
        crate::stage::end(command.spawn().unwrap(), self.name).await
    }
}

fn nothing(_: &Stage) {}

fn contents(stage: &Stage) -> BTreeMap<String, Option<Vec<u8>>> {
    stage.names().into_iter().map(|name| (name.clone(), content(&stage.path(&name)))).collect()
}

pub(crate) async fn all_hold(cases: &[Case]) {
    for case in cases {
        case.holds().await;
    }
}

#[tokio::test]
async fn a_wrong_provider_key_or_model_is_named_with_the_way_out() {
    all_hold(&[
        Case::new(
            "no key",
            "run images.csv --provider restb --models re_logo",
            2,
            &["key is missing", "RESTB_CLIENT_KEY"],
        )
        .key(None),
        Case::new(
            "an empty key",
            "run images.csv --provider restb --models re_logo",
            2,
            &["key is missing", "RESTB_CLIENT_KEY"],
        )
        .key(Some(" ")),
        Case::new(
            "a wrong key",
            "run images.csv --provider restb --models re_logo",
            1,
            &[
                "`restb` refuses the account: status 401",
                "Check the key in RESTB_CLIENT_KEY",
                "run the same command again",
            ],
        )
        .key(Some("wrong")),
        Case::new(
            "a wrong key of an API of one's own",
            "run images.csv AT",
            1,
            &["refuses the account: status 401", "`api`", "Check the key in GENERIC_API_KEY"],
        )
        .key(Some("wrong")),
        Case::new(
            "no key where the API wants one",
            "run images.csv AT",
            1,
            &["refuses the account: status 401", "`api`", "GENERIC_API_KEY"],
        )
        .key(None),
        Case::new(
            "a typing error in a provider",
            "run images.csv --provider tilter --models m",
            2,
            &["no provider `tilter`", "did you mean `tiliter`?"],
        ),
        Case::new(
            "no provider of several",
            "run images.csv --models m",
            2,
            &["the settings name several", "--provider api|restb"],
        ),
        Case::new(
            "no provider at all",
            "run images.csv --models m",
            2,
            &["the settings name no provider", "presets", "restb"],
        )
        .given(|stage| stage.write("pixfleet.toml", "")),
        Case::new(
            "a typing error in a model",
            "run images.csv --provider tiliter --models bag_recogniton",
            2,
            &["--models: ", "does not know the model `bag_recogniton`", "did you mean `bag_recognition`?"],
        ),
        Case::new(
            "a model that no pattern knows",
            "run images.csv --provider restb --models logo",
            2,
            &["does not know the model", "`logo`", "it knows re_*"],
        ),
        Case::new(
            "a limit of a preset, by its number",
            "run images.csv AT --set providers.api.limits[0].calls=8",
            2,
            &["has no such element here: set the list as a whole", "providers.api.limits=[...]"],
        ),
        Case::new(
            "no model of several",
            "run images.csv --provider tiliter",
            2,
            &["--models: none is named", "product_recognition, bag_recognition"],
        ),
        Case::new(
            "a model twice",
            "run images.csv --provider api --models m,m",
            2,
            &["--models: ", "`m` is named twice"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_api_that_is_not_there_is_said_once_with_its_address() {
    // Held until the end, and never listened on by anybody else: bound, and refused.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 3);
    for (name, endpoint, says) in [
        ("nothing listens", format!("http://{free}"), "nothing listens there"),
        ("an unknown host", "http://no-such-host.invalid".to_owned(), "no-such-host.invalid:80"),
    ] {
        let line = format!("run images.csv {AT} --set providers.api.endpoint={endpoint}");
        let ended = stage.done(&line).await;
        let setting = format!("providers.api.endpoint is {endpoint}");
        ended.assert(1, &["`api` can't be reached at", says, &setting, "Is it running"], name);
        assert_eq!(ended.stderr.lines().count(), 1, "{name}: {}", ended.stderr);
        assert!(!stage.path("images.pixfleet").exists(), "{name}: nothing is begun");
    }
    let line = format!("run images.csv {AT} --set providers.api.endpoint=127.0.0.1:8089");
    stage.done(&line).await.assert(2, &["providers.api.endpoint", "no URL"], "an address without http://");
}
