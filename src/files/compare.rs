//! What has to be done so that one place becomes like another: two lists in the same order, read side by side.

use std::cmp::Ordering;

use regex::bytes::Regex;
use tokio::sync::mpsc;

use super::place::List;
use super::trouble::{Kind, Trouble};
use super::walk::Found;
use crate::mesh::{FileDone, FileInfo, FileKind, SharePath};

/// Something that there is to get, and who has it: the first is the one that counts.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) info: FileInfo,
    /// Number of the place, and when the file was changed there.
    pub(super) holders: Vec<(usize, i64)>,
}

/// What is to be done about one path.
#[derive(Debug)]
pub(super) enum Step {
    /// A file is to be moved.
    Move {
        offer: Offer,
        was: Was,
    },
    Directory {
        path: SharePath,
        was: Was,
    },
    Link {
        path: SharePath,
        to: Vec<u8>,
        modified_ns: i64,
        was: Was,
    },
    /// Only permissions and times. Those of directories are set at the end.
    Attributes {
        info: FileInfo,
    },
    Delete {
        path: SharePath,
    },
    /// It is in a directory that is deleted, and goes with it.
    Goes,
    Failed {
        path: SharePath,
        message: String,
    },
    /// It is as it should be.
    Same,
}

/// What is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Was {
    Nothing,
    Other,
    /// A file of the same size, changed at another time: maybe it is the same.
    Alike {
        modified_ns: i64,
    },
    /// Something that cannot be replaced, and has to be deleted before.
    InTheWay,
}

impl Was {
    pub(super) fn done(&self) -> FileDone {
        if *self == Self::Nothing { FileDone::Created } else { FileDone::Replaced }
    }
}

/// What there is to get at one place or more.
#[derive(Debug)]
pub(super) struct Offers {
    lists: Vec<Option<List>>,
    heads: Vec<Option<Found>>,
    begun: bool,
    /// One of several was lost: what only it had is not known.
    pub(super) incomplete: bool,
    /// Something is hidden between the last two that came, or between the last one and the end: what it is is not known.
    pub(super) hides: bool,
}

/// How it is compared.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) regex: Option<Regex>,
    /// What the expression is compared with for what has an empty path.
    pub(super) name: Vec<u8>,
    pub(super) delete: bool,
}

impl Offers {
    pub(super) fn new(lists: Vec<List>) -> Self {
        let heads = lists.iter().map(|_| None).collect();
        Self { lists: lists.into_iter().map(Some).collect(), heads, begun: false, incomplete: false, hides: false }
    }

    async fn advance(&mut self, at: usize) -> Result<(), Trouble> {
        let Some(list) = &mut self.lists[at] else { return Ok(()) };
        match list.next().await {
            Ok(found) => self.heads[at] = found,
            Err(trouble) if trouble.kind == Kind::Lost && self.lists.iter().flatten().count() > 1 => {
                (self.lists[at], self.heads[at]) = (None, None); // others go on
                self.incomplete = true;
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Result<Offer, (SharePath, String)>>, Trouble> {
        if !std::mem::replace(&mut self.begun, true) {
            for at in 0..self.lists.len() {
                self.advance(at).await?;
            }
        }
        // Each is between two of its own, and what comes next is not behind the second of these.
        self.hides = self.lists.iter().flatten().any(List::hid);
        let least = self.heads.iter().flatten().map(Found::path).min_by(|a, b| a.in_order(b));
        let Some(path) = least.cloned() else { return Ok(None) };
        let mut offer: Option<Offer> = None;
        let mut unread = None;
        for at in 0..self.heads.len() {
            if self.heads[at].as_ref().is_none_or(|found| *found.path() != path) {
                continue;
            }
            match (self.heads[at].take(), &mut offer) {
                (Some(Found::File(info)), None) => {
                    offer = Some(Offer { holders: vec![(at, info.modified_ns)], info });
                }
                (Some(Found::File(info)), Some(offer))
                    if offer.info.kind == info.kind && offer.info.bytes == info.bytes =>
                {
                    offer.holders.push((at, info.modified_ns));
                }
                (Some(Found::Unread(path, why)), _) => {
                    self.incomplete |= self.heads.len() > 1; // another may have it, and not what is below
                    unread = Some((path, why));
                }
                _ => {}
            }
            self.advance(at).await?;
        }
        Ok(offer.map(Ok).or_else(|| unread.map(Err)))
    }
}

impl Terms {
    fn selects(&self, info: &FileInfo) -> bool {
        let Some(regex) = &self.regex else { return true };
        let text = if info.path.is_root() { &self.name } else { info.path.as_bytes() };
        info.kind != FileKind::Directory && regex.is_match(text)
    }
}

/// Compares, and says what is to be done.
pub(super) async fn compare(
    mut source: Offers,
    mut sink: List,
    terms: &Terms,
    steps: &mpsc::Sender<Step>,
) -> Result<(), Trouble> {
    let mut there = next_there(&mut sink).await?;
    // What is below these is not looked at: it goes with them, or is not known.
    let mut skipped: Option<SharePath> = None;
    let (mut deleted, mut kept): (Option<SharePath>, Option<SharePath>) = (None, None);
    let mut wanted = source.next().await?;
    loop {
        let order = match (&wanted, &there) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(Ok(offer)), Some(there)) => offer.info.path.in_order(there.path()),
            (Some(Err((path, _))), Some(there)) => path.in_order(there.path()),
        };
        let mut was = None;
        if order != Ordering::Less {
            was = there.take();
            there = next_there(&mut sink).await?;
        }
        let offer = if order == Ordering::Greater {
            None
        } else {
            let offer = wanted.take();
            wanted = source.next().await?;
            offer
        };
        let is_below = |path: &SharePath, of: &Option<SharePath>| of.as_ref().is_some_and(|of| path.is_within(of));
        let is_skipped = |path: &SharePath| is_below(path, &skipped);
        let step = match (offer, was) {
            (Some(Err((path, message))), _) => {
                skipped = Some(path.clone());
                Some(Step::Failed { path, message })
            }
            (_, Some(Found::Unread(path, message))) => Some(Step::Failed { path, message }),
            (Some(Ok(offer)), _) if is_skipped(&offer.info.path) => None, // what it would be in is not made
            (Some(Ok(offer)), was) => {
                let was = was.and_then(|was| if let Found::File(info) = was { Some(info) } else { None });
                let into = was.as_ref().is_some_and(|was| was.kind == FileKind::Directory);
                if into && offer.info.kind != FileKind::Directory && terms.selects(&offer.info) {
                    skipped = Some(offer.info.path.clone()); // it is replaced, or stays as it is
                }
                let step = differs(offer, was, terms);
                if let Some(Step::Failed { path, .. }) = &step {
                    skipped = Some(path.clone());
                }
                step
            }
            (None, Some(Found::File(info))) if is_below(&info.path, &deleted) => Some(Step::Goes),
            (None, Some(Found::File(info))) if terms.delete && !source.incomplete && !is_skipped(&info.path) => {
                let whole = terms.regex.is_none();
                let is_whole_directory = whole && info.kind == FileKind::Directory;
                match whole || terms.selects(&info) {
                    false => None,
                    // It may be there. Once for all below, where what is not hidden is still compared.
                    true if source.hides && is_below(&info.path, &kept) => None,
                    true if source.hides => {
                        if is_whole_directory {
                            kept = Some(info.path.clone());
                        }
                        Some(Step::Failed { path: info.path, message: HIDDEN.to_owned() })
                    }
                    true => {
                        if is_whole_directory {
                            skipped = Some(info.path.clone());
                            deleted = Some(info.path.clone());
                        }
                        Some(Step::Delete { path: info.path })
                    }
                }
            }
            _ => None,
        };
        if let Some(step) = step
            && steps.send(step).await.is_err()
        {
            return Ok(()); // nobody does anything about it any more
        }
    }
}

async fn next_there(sink: &mut List) -> Result<Option<Found>, Trouble> {
    match sink.next().await {
        Err(trouble) if trouble.kind == Kind::NotThere => Ok(None), // nothing is there yet
        next => next,
    }
}

fn differs(offer: Offer, was: Option<FileInfo>, terms: &Terms) -> Option<Step> {
    let info = &offer.info;
    if terms.regex.is_some() && !terms.selects(info) {
        return None;
    }
    let path = info.path.clone();
    let is_directory = info.kind == FileKind::Directory;
    let before = match &was {
        None => Was::Nothing,
        Some(was) => match (&was.kind, is_directory) {
            (FileKind::Directory, true) => {
                let same = (was.mode, was.modified_ns) == (info.mode, info.modified_ns);
                return Some(if same { Step::Same } else { Step::Attributes { info: offer.info } });
            }
            (FileKind::Directory, false) | (_, true) => {
                let what = if is_directory { "is no directory" } else { "is a directory" };
                if !terms.delete {
                    let message = format!("what is there {what}: sync --delete replaces it");
                    return Some(Step::Failed { path, message });
                }
                Was::InTheWay
            }
            (FileKind::Link(old), false) => match &info.kind {
                FileKind::Link(new) if old == new => return Some(Step::Same),
                _ => Was::Other,
            },
            (FileKind::File, false) => {
                let same_size = info.kind == FileKind::File && was.bytes == info.bytes;
                if same_size && was.modified_ns == info.modified_ns {
                    let same = was.mode == info.mode;
                    return Some(if same { Step::Same } else { Step::Attributes { info: offer.info } });
                }
                if same_size && info.bytes > 0 { Was::Alike { modified_ns: was.modified_ns } } else { Was::Other }
            }
        },
    };
    Some(match offer.info.kind {
        FileKind::Directory => Step::Directory { path, was: before },
        FileKind::Link(to) => Step::Link { path, to, modified_ns: offer.info.modified_ns, was: before },
        FileKind::File => Step::Move { offer, was: before },
    })
}

/// Why something stays, and what to do about it.
const HIDDEN: &str = "not deleted: a rule there hides something from this node, and this may be that: be allowed to get it, or delete \
                      it by hand";
