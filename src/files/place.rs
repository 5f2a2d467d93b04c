//! A place of files, here or there: asked in the same words.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::far::{self, Far};
use super::share::{blocking, page};
use super::store::Store;
use super::trouble::{Kind, Trouble};
use super::walk::{Found, Matcher, Pattern, Walk, Wanted};
use super::words::{self, Answer, Ask, ListAsked, Page, Purpose};
use crate::mesh::{FileInfo, SharePath};
use crate::node::Channel;

/// Who has files, or gets them.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Here(Arc<Store>),
    There(Arc<Far>, String),
    /// A directory here that would be made.
    Nowhere,
}

/// What is at a place, in order, as it comes.
#[derive(Debug)]
pub(super) struct List {
    place: Place,
    purpose: Purpose,
    wanted: Wanted,
    /// What another node tells of is what was asked for.
    matcher: Option<Matcher>,
    pages: Pages,
    /// `None`: something is hidden there.
    found: VecDeque<Option<Found>>,
    last: Option<SharePath>,
    /// Something is hidden behind the last, or was just before it.
    hides: bool,
    hid: bool,
    waits: bool,
    tries: usize,
}

#[derive(Debug)]
enum Pages {
    Unopened,
    Here(Box<Walk>),
    There(Channel),
    Over,
}

impl Place {
    pub(super) async fn ask(&self, ask: Ask, data: Bytes) -> Result<(Answer, Bytes), Trouble> {
        self.ask_waiting(ask, data, true).await
    }

    /// Asks. A node that is lost is waited for, or not.
    pub(super) async fn ask_waiting(&self, ask: Ask, data: Bytes, waits: bool) -> Result<(Answer, Bytes), Trouble> {
        match self {
            Self::Here(store) => {
                let store = Arc::clone(store);
                blocking(move || store.answer(ask, &data, &AtomicBool::new(false))).await
            }
            Self::There(far, share) => far.ask(share, ask, data, waits).await,
            Self::Nowhere => Err(Trouble::new(Kind::NotThere, "there is nothing yet")),
        }
    }

    pub(super) async fn look(&self, path: &SharePath, purpose: Purpose, through: bool) -> Result<Looked, Trouble> {
        let ask = Ask::Look { path: path.clone(), purpose, through };
        match self.ask(ask, Bytes::new()).await?.0 {
            // What is not asked for is not taken: neither other files, nor leave to delete others.
            Answer::Found { root, pattern, info }
                if pattern.is_none() || pattern == Pattern::split(path).map(|(_, pattern)| pattern) =>
            {
                Ok(Looked { root, pattern, info })
            }
            _ => Err(unexpected()),
        }
    }

    pub(super) fn list(&self, purpose: Purpose, wanted: Wanted, waits: bool) -> List {
        let (pages, found, last) = (Pages::Unopened, VecDeque::new(), None);
        let (matcher, hides, hid, tries) = (None, false, false, 0);
        List { place: self.clone(), purpose, wanted, matcher, pages, found, last, hides, hid, waits, tries }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::There(far, _) => far.name().to_string(),
            Self::Here(_) | Self::Nowhere => "this machine".to_owned(),
        }
    }
}

/// Where something is, and what.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) root: SharePath,
    pub(super) pattern: Option<Pattern>,
    pub(super) info: Option<FileInfo>,
}

impl List {
    /// What comes next. Nothing is lost when this is dropped, but it may be read again.
    ///
    /// # Errors
    /// It does not go on.
    pub(super) async fn next(&mut self) -> Result<Option<Found>, Trouble> {
        let found = loop {
            match self.found.pop_front() {
                Some(Some(found)) => break found,
                Some(None) => self.hides = true,
                None if matches!(self.pages, Pages::Over) => {
                    self.hid = self.hides;
                    return Ok(None);
                }
                None => self.more().await?,
            }
        };
        self.hid = std::mem::take(&mut self.hides);
        // Two lists can only be compared if both are in order; and so no list is endless.
        if self.last.as_ref().is_some_and(|last| last.in_order(found.path()) != Ordering::Less) {
            return Err(Trouble::new(Kind::Bad, format!("{}: its list is in no order", self.place.name())));
        }
        // What cannot be read may be a directory on the way to what the pattern selects.
        let takes = |matcher: &Matcher| matches!(found, Found::Unread(..)) || matcher.takes(found.path());
        if !self.matcher.as_ref().is_none_or(takes) {
            let text = format!("{}: it lists '{}', which was not asked for", self.place.name(), found.path());
            return Err(Trouble::new(Kind::Bad, text));
        }
        self.last = Some(found.path().clone());
        Ok(Some(found))
    }

    /// Whether something is hidden between the last two that came, or between the last one and the end.
    pub(super) fn hid(&self) -> bool {
        self.hid
    }

    async fn more(&mut self) -> Result<(), Trouble> {
        match std::mem::replace(&mut self.pages, Pages::Unopened) {
            Pages::Over => self.pages = Pages::Over,
            Pages::Here(mut walk) => {
                let (found, over, walk) = blocking(move || {
                    let (found, over) = page(&mut walk, |_| true);
                    Ok((found, over, walk))
                })
                .await?;
                self.found.extend(found);
                self.pages = if over { Pages::Over } else { Pages::Here(walk) };
            }
            Pages::There(channel) => {
                let Place::There(far, _) = &self.place else { return Ok(()) };
                let trouble = match channel.next().await {
                    Ok(Some(item)) => {
                        self.pages = match words::decode::<Page>(&item.payload)?.found() {
                            Some(found) => {
                                self.found.extend(found);
                                Pages::There(channel)
                            }
                            None => Pages::Over,
                        };
                        return Ok(());
                    }
                    // It was closed amid the list.
                    Ok(None) => Trouble::new(Kind::Lost, format!("{} is lost: it stopped to list", far.name())),
                    Err(error) => far.list_trouble(error),
                };
                if trouble.kind != Kind::Lost || !self.waits || self.tries >= far::TRIES {
                    return Err(trouble);
                }
                self.tries += 1;
                let far = Arc::clone(far);
                far.back(channel.far()).await?; // and it goes on after the last that came
            }
            Pages::Unopened => self.open().await?,
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<(), Trouble> {
        let wanted = Wanted { after: self.last.clone().or_else(|| self.wanted.after.clone()), ..self.wanted.clone() };
        let purpose = self.purpose;
        match &self.place {
            Place::Nowhere => self.pages = Pages::Over,
            Place::Here(store) => {
                let store = Arc::clone(store);
                self.pages = Pages::Here(Box::new(blocking(move || store.walk(purpose, wanted)).await?));
            }
            Place::There(far, share) => {
                if self.matcher.is_none()
                    && let Some(pattern) = &self.wanted.pattern
                {
                    self.matcher = Some(pattern.matcher().map_err(|why| Trouble::new(Kind::Bad, why))?);
                }
                let id = far.id();
                match far.list(&ListAsked { share: share.clone(), purpose, wanted }).await {
                    Ok(channel) => self.pages = Pages::There(channel),
                    Err(trouble) if trouble.kind == Kind::Lost && self.waits && self.tries < far::TRIES => {
                        self.tries += 1;
                        Arc::clone(far).back(id).await?;
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        Ok(())
    }
}

pub(super) fn unexpected() -> Trouble {
    Trouble::new(Kind::Bad, "an answer to another question")
}
