//! What a router's processes use.
use crate::{
    harness::Process,
    load::{PATIENCE, Session},
};
use std::{
    error::Error,
    fs, thread,
    time::{Duration, Instant},
};

/// So often the router is looked at.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);
/// So often it is looked at whether it works.
const SAMPLE: Duration = Duration::from_millis(4);
/// Who used less of a sample does not work: timers and collectors of garbage.
const BUSY: f64 = 0.0004;
/// Who does not work for so long is done.
const IDLE: Duration = Duration::from_millis(200);

/// A router and its children.
pub(crate) struct Running {
    pids: Vec<u32>,
}

/// What they have used.
pub(crate) struct Usage {
    /// Processor time.
    pub(crate) seconds: f64,
    /// Resident memory.
    pub(crate) octets: u64,
}

impl Running {
    pub(crate) fn new(router: &Process) -> Self {
        let mut pids = vec![router.0.id()];
        let mut at = 0;
        while let Some(&pid) = pids.get(at) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            at += 1;
        }
        Running { pids }
    }

    pub(crate) fn usage(&self) -> Result<Usage, Box<dyn Error>> {
        let mut usage = Usage { seconds: self.processor()?, octets: 0 };
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
            usage.octets += kibibytes.parse::<u64>()? << 10;
        }
        Ok(usage)
    }

    /// Seconds of all threads.
    fn processor(&self) -> Result<f64, Box<dyn Error>> {
        let mut nanoseconds = 0;
        for pid in &self.pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                // It may have ended meanwhile.
                let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
                nanoseconds += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
            }
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// Whether octets of a connection wait for the router.
    fn has_unread(&self) -> Result<bool, Box<dyn Error>> {
        let Some(pid) = self.pids.first() else { return Ok(false) };
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
        // sl local remote state tx:rx; state 1 is ESTABLISHED.
        Ok(table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(3);
            let established = fields.next() == Some("01");
            established && fields.next().is_some_and(|queues| !queues.ends_with(":00000000"))
        }))
    }

    /// Whether a thread waits for a processor.
    fn is_runnable(&self) -> Result<bool, Box<dyn Error>> {
        for pid in &self.pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let Ok(text) = fs::read_to_string(thread?.path().join("stat")) else { continue };
                // The state is behind the name, which is in parentheses.
                if text.rsplit(") ").next().is_some_and(|state| state.starts_with('R')) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Waits until the router has read everything and done what follows; how long after `start` that was.
    pub(crate) fn wait_idle(&self, from: &mut Session, start: Instant) -> Result<Duration, Box<dyn Error>> {
        let (mut used, mut busy) = (self.processor()?, Instant::now());
        while busy.elapsed() < IDLE {
            thread::sleep(SAMPLE);
            from.keep_alive()?;
            let now = self.processor()?;
            if now - used > BUSY || self.has_unread()? || self.is_runnable()? {
                busy = Instant::now();
            }
            used = now;
            if start.elapsed() > PATIENCE {
                return Err("it does not come to rest".into());
            }
        }
        Ok(busy - start)
    }

    pub(crate) fn pause(&self) {
        thread::sleep(SAMPLE);
    }
}
