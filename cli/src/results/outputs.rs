//! What a reader's rows go to: one output of text, and any number of files.

use super::read::Reader;

impl Reader {
    /// Hands what waits to every output; with `sync`, it is on the disk when it returns.
    pub(super) async fn hand_over(&mut self, sync: bool) -> anyhow::Result<()> {
        if self.rows.waiting() > 0 {
            let bytes = self.rows.drain()?;
            if let Some(output) = &self.output {
                output.write(bytes, sync).await?;
            }
        }
        match &mut self.files {
            Some(files) => files.write(sync).await,
            None => Ok(()),
        }
    }

    /// Makes every file of `--into` whole.
    pub(super) async fn finish_files(&mut self) -> anyhow::Result<()> {
        match self.files.take() {
            Some(files) => files.finish().await,
            None => Ok(()),
        }
    }

    /// How many rows were written, to each output that there is.
    pub(super) fn written(&self) -> u64 {
        match (&self.output, &self.files) {
            (Some(_), _) => self.rows.total(),
            (None, Some(files)) => files.total(),
            (None, None) => 0,
        }
    }
}
