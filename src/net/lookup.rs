//! Asking the system for the addresses of a host, which blocks for as long as it likes.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Lookups that are under way, or were a moment ago. Cheap to clone.
///
/// Each has a thread of its own, which nobody waits for: a runtime that ends would wait for one of its blocking threads.
#[derive(Clone)]
pub(super) struct Lookups {
    resolve: Arc<Resolve>,
    known: Arc<Mutex<HashMap<String, Lookup>>>,
    patience: Duration,
}

type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
type Found = Result<Vec<IpAddr>, Arc<io::Error>>;

struct Lookup {
    began: Instant,
    found: watch::Receiver<Option<Found>>,
}

impl Lookup {
    fn is_over(&self) -> bool {
        self.found.has_changed().is_err() // what tells is gone
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("known", &self.known().len()).finish_non_exhaustive()
    }
}

impl Lookups {
    /// What the system knows: its hosts file, its name servers, and whatever else it is set up to ask.
    pub(super) fn of_system() -> Self {
        Self::new(|name| Ok((name, 0).to_socket_addrs()?.map(|socket| socket.ip()).collect()))
    }

    pub(super) fn new(resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), known: Arc::default(), patience: PATIENCE }
    }

    /// The addresses of a host, in the order in which they are to be tried.
    ///
    /// # Errors
    /// The host is not known, or not within [`PATIENCE`], or [`MOST`] others are looked up.
    ///
    /// # Cancel safety
    /// When this is dropped the lookup goes on, and who asks next gets what it finds. A name is looked up once at a time.
    pub(super) async fn find(&self, name: &str) -> Found {
        let mut found = self.look_up(name)?;
        let found = match timeout(self.patience, found.wait_for(Option::is_some)).await {
            Ok(Ok(found)) => found.clone(),
            Ok(Err(_)) => None, // it panicked
            Err(_) => return Err(Arc::new(io::ErrorKind::TimedOut.into())),
        };
        self.known().remove(name);
        found.unwrap_or_else(|| Err(Arc::new(io::Error::other("the lookup broke off"))))
    }

    fn look_up(&self, name: &str) -> Result<watch::Receiver<Option<Found>>, Arc<io::Error>> {
        let mut known = self.known();
        known.retain(|_, lookup| !lookup.is_over() || lookup.began.elapsed() < FRESH);
        if let Some(lookup) = known.get(name) {
            return Ok(lookup.found.clone());
        }
        if known.values().filter(|lookup| !lookup.is_over()).count() >= MOST {
            return Err(Arc::new(io::Error::other(format!("{MOST} other names are being looked up"))));
        }
        let (tell, found) = watch::channel(None);
        let (resolve, wanted) = (Arc::clone(&self.resolve), name.to_owned());
        let thread = thread::Builder::new().name("lookup".to_owned());
        thread.spawn(move || tell.send(Some(resolve(&wanted).map_err(Arc::new)))).map_err(Arc::new)?;
        known.insert(name.to_owned(), Lookup { began: Instant::now(), found: found.clone() });
        Ok(found)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Lookup>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a dial waits for the addresses. A name server that does not answer takes 5 s before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long what a lookup found is kept for who asks next, if its dial was given up.
const FRESH: Duration = Duration::from_secs(30);
/// Most lookups at a time.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A system that answers when it is told to, and counts how often it was asked.
    fn slow() -> (Lookups, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (answer, told) = mpsc::channel();
        let (told, asked) = (Mutex::new(told), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let lookups = Lookups::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            told.lock().unwrap().recv().map(|()| vec![HOST]).map_err(io::Error::other)
        });
        (lookups, answer, asked)
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_at_a_time_and_what_is_found_late_is_not_lost() {
        let (lookups, answer, asked) = slow();
        for _ in 0..3 {
            assert!(futures::FutureExt::now_or_never(lookups.find("host")).is_none());
        }
        answer.send(()).unwrap();
        let (one, other) = tokio::join!(lookups.find("host"), lookups.find("host"));
        assert_eq!((one.unwrap(), other.unwrap()), (vec![HOST], vec![HOST]));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        answer.send(()).unwrap();
        lookups.find("host").await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2, "what was found is for those who waited");
    }

    #[tokio::test]
    async fn many_names_at_once_are_refused() {
        let (lookups, answer, _) = slow();
        for number in 0..MOST {
            assert!(futures::FutureExt::now_or_never(lookups.find(&number.to_string())).is_none());
        }
        assert_eq!(lookups.find("one more").await.unwrap_err().to_string(), "16 other names are being looked up");
        drop(answer); // then all end
        for number in 0..MOST {
            lookups.find(&number.to_string()).await.unwrap_err();
        }
        assert_eq!(lookups.find("one more").await.unwrap_err().to_string(), "receiving on a closed channel");
    }

    #[tokio::test]
    async fn a_system_that_does_not_answer_is_waited_for_a_while() {
        let (mut lookups, _answer, _) = slow();
        lookups.patience = Duration::from_millis(20);
        assert_eq!(lookups.find("host").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_lookup_that_panics_is_an_error() {
        let lookups = Lookups::new(|_| panic!("as meant"));
        assert_eq!(lookups.find("host").await.unwrap_err().to_string(), "the lookup broke off");
    }
}
