//! A look at several stacks, as `limits show`, `status` and every change print it.

use std::sync::Arc;

use jiff::Timestamp;
use pixfleet_shared::limiter::LimiterError;
use pixfleet_worker::provider::{Catalog, Provider};
use serde::Serialize;

use super::{
    reach::Limiter,
    show,
    shown::{self, Shown, ShownTime},
    stacks::{self, Owned},
};
use crate::{output, results::terminal::stdout_width};

/// Where stacks stand, and when calls would be done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Look {
    stacks: Vec<Shown>,
    times: Vec<ShownTime>,
}

impl Look {
    /// Of every provider of the catalog; with `calls`, when so many would be done at each of them.
    ///
    /// # Errors
    /// When the limiter is away.
    pub(crate) async fn at_all(
        limiter: &Limiter,
        catalog: &Catalog,
        calls: Option<u64>,
    ) -> Result<Self, LimiterError> {
        let all: Vec<Arc<Provider>> = catalog.iter().cloned().collect();
        Self::at(limiter, catalog, &all, calls, false).await
    }

    /// Of these providers, which are in the catalog.
    ///
    /// # Errors
    /// When the limiter is away.
    pub(super) async fn at(
        limiter: &Limiter,
        catalog: &Catalog,
        providers: &[Arc<Provider>],
        calls: Option<u64>,
        history: bool,
    ) -> Result<Self, LimiterError> {
        let limiter = limiter.limiter.as_ref();
        let mut look = Self::default();
        for owned in stacks::stacks(catalog, providers) {
            look.stacks.push(shown::look(limiter, &owned, history).await?);
        }
        if let Some(calls) = calls {
            for provider in providers {
                look.times.push(shown::look_ahead(limiter, provider, calls).await?);
            }
        }
        Ok(look)
    }

    /// Of these stacks, after a change.
    ///
    /// # Errors
    /// When the limiter is away.
    pub(super) async fn at_stacks(limiter: &Limiter, stacks: &[Owned]) -> Result<Self, LimiterError> {
        let mut look = Self::default();
        for owned in stacks {
            look.stacks.push(shown::look(limiter.limiter.as_ref(), owned, false).await?);
        }
        Ok(look)
    }

    /// In words.
    pub(crate) fn lines(&self, now: Timestamp, terminal: Option<u16>) -> Vec<String> {
        let mut lines: Vec<String> =
            self.stacks.iter().flat_map(|shown| show::lines(shown, terminal)).collect();
        lines.extend(self.times.iter().map(|time| show::time(time, now, terminal)));
        lines
    }

    /// Prints itself.
    ///
    /// # Errors
    /// Of stdout.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            output::json(self)?;
            return Ok(());
        }
        for line in self.lines(Timestamp::now(), stdout_width()) {
            output::line(line)?;
        }
        Ok(())
    }
}
