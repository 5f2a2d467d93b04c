//! Moving files: small ones together, large ones in chunks, from all who have them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::chunks::{self, CHUNK, Held, Root};
use super::compare::{Offer, Was};
use super::partial::Version;
use super::place::unexpected;
use super::store::MOST_VALUES;
use super::target::{Leg, Source};
use super::trouble::{Kind, Trouble};
use super::words::{Answer, Ask, Change, Outcome, Purpose, Record};
use crate::mesh::{FileDone, FileKind, SharePath};

/// Who is asked for the chunks of a file.
struct Holder {
    source: usize,
    version: Version,
    /// Chunks that it was asked for.
    asked: usize,
    /// What it has, once it has said so.
    hash: Option<[u8; 32]>,
    /// That is known to be the same.
    joins: bool,
    gone: bool,
}

/// What became of a chunk.
struct Came {
    holder: usize,
    index: u64,
    result: Result<[u8; 32], (Trouble, Side)>,
}

/// Whose trouble it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Sink,
}

/// A chunk that is under way.
type Coming<'a> = BoxFuture<'a, Came>;
/// A hash that was asked for, of which holder.
type Hashing<'a> = BoxFuture<'a, (usize, Result<[u8; 32], Trouble>)>;

impl Leg {
    /// Moves small files, each whole or not at all.
    pub(super) async fn small(self: &Arc<Self>, offers: Vec<(Offer, Was)>) -> Result<(), Trouble> {
        let mut by_source: BTreeMap<usize, Vec<(Offer, Was)>> = BTreeMap::new();
        for (turn, (offer, was)) in offers.into_iter().enumerate() {
            by_source.entry(self.holder(&offer, turn)).or_default().push((offer, was));
        }
        while let Some((source, offers)) = by_source.pop_first() {
            let more = |offer: &Offer| self.alive(offer).iter().any(|(other, _)| *other != source);
            let others = offers.iter().all(|(offer, _)| more(offer));
            match self.small_from(source, &offers, !others).await {
                Ok(()) => {}
                Err(trouble) if trouble.kind == Kind::Lost && others => {
                    self.sources[source].lost.store(true, Ordering::Relaxed);
                    for (turn, (offer, was)) in offers.into_iter().enumerate() {
                        by_source.entry(self.holder(&offer, turn)).or_default().push((offer, was));
                    }
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Who has the same file, as far as can be told by its time, and was not lost.
    fn alive(&self, offer: &Offer) -> Vec<(usize, i64)> {
        let same = |(_, modified): &&(usize, i64)| *modified == offer.info.modified_ns;
        let all = offer.holders.iter().filter(same).copied();
        all.filter(|(source, _)| !self.sources[*source].lost.load(Ordering::Relaxed)).collect()
    }

    fn holder(&self, offer: &Offer, turn: usize) -> usize {
        let alive = self.alive(offer);
        match alive.len() {
            0 => offer.holders.first().map_or(0, |(source, _)| *source),
            count => alive[turn / TOGETHER % count].0,
        }
    }

    async fn small_from(self: &Arc<Self>, source: usize, offers: &[(Offer, Was)], waits: bool) -> Result<(), Trouble> {
        let from = &self.sources[source];
        let paths = offers.iter().map(|(offer, _)| from.root.join(&offer.info.path)).collect();
        let (answer, data) = from.place.ask_waiting(Ask::Read { paths }, Bytes::new(), waits).await?;
        let Answer::Records(records) = answer else { return Err(unexpected()) };
        if records.len() != offers.len() {
            return Err(unexpected());
        }
        let mut written = Vec::new();
        let mut sent = Vec::new();
        for (record, (offer, was)) in records.into_iter().zip(offers) {
            match record {
                Record::Read { bytes, .. } => {
                    sent.push((offer, was, bytes));
                    written.push(record);
                }
                Record::Not(kind, message) => {
                    let trouble = Trouble::new(Kind::of_name(kind), message);
                    self.not_moved(offer, was, trouble).await?;
                }
            }
        }
        if sent.is_empty() {
            return Ok(());
        }
        let in_the_way = sent.iter().filter(|(_, was, _)| **was == Was::InTheWay);
        self.make_room(in_the_way.map(|(offer, ..)| *offer)).await?;
        let paths = sent.iter().map(|(offer, ..)| self.to.join(&offer.info.path)).collect();
        let Answer::Done(outcomes) = self.sink.ask(Ask::Write { paths, records: written }, data).await?.0 else {
            return Err(unexpected());
        };
        for (outcome, (offer, was, bytes)) in outcomes.into_iter().zip(sent) {
            match Outcome::into_result(outcome) {
                Ok(_) => {
                    self.target.tally.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
                    self.target.done(self.below.join(&offer.info.path), u64::from(bytes), was.done()).await;
                }
                Err(trouble) => self.not_moved(offer, was, trouble).await?,
            }
        }
        Ok(())
    }

    /// Deletes what is in the way of files, all of which has come: it would be lost for nothing if they did not.
    async fn make_room(&self, offers: impl Iterator<Item = &Offer>) -> Result<(), Trouble> {
        let deletions = offers.map(|offer| Change::Delete { path: self.to.join(&offer.info.path) }).collect();
        let _ = self.changed(deletions).await?; // what is still there is told as what fails next
        Ok(())
    }

    /// A file that is not as it was said to be is looked at again; else it is told.
    async fn not_moved(self: &Arc<Self>, offer: &Offer, was: &Was, trouble: Trouble) -> Result<(), Trouble> {
        match trouble.kind {
            Kind::Changed => self.again(offer.clone(), was.clone(), trouble).await,
            Kind::NotThere => {
                let path = self.below.join(&offer.info.path);
                self.target.failed(path, "it is not there any more".to_owned()).await;
                Ok(())
            }
            _ => {
                self.target.failed(self.below.join(&offer.info.path), trouble.message).await;
                Ok(())
            }
        }
    }

    /// Moves one file that is large, or maybe there already.
    pub(super) async fn alone(self: &Arc<Self>, offer: Offer, was: Was) -> Result<(), Trouble> {
        if let Was::Alike { modified_ns } = was
            && self.is_same(&offer, modified_ns).await?
        {
            let (path, mode) = (self.to.join(&offer.info.path), offer.info.mode);
            let change = Change::Attributes { path, mode, modified_ns: offer.info.modified_ns };
            self.target.tally.planned_bytes.fetch_sub(offer.info.bytes, Ordering::Relaxed);
            return self.attributes(&offer, change).await;
        }
        if offer.info.bytes <= CHUNK {
            return self.small(vec![(offer, was)]).await;
        }
        self.target.begun(self.below.join(&offer.info.path), offer.info.bytes).await;
        match self.large(&offer, &was).await {
            Ok(bytes) => {
                self.target.done(self.below.join(&offer.info.path), bytes, was.done()).await;
                Ok(())
            }
            Err(trouble) if matches!(trouble.kind, Kind::Lost | Kind::Closed) => Err(trouble),
            Err(trouble) => Box::pin(self.not_moved(&offer, &was, trouble)).await,
        }
    }

    async fn attributes(&self, offer: &Offer, change: Change) -> Result<(), Trouble> {
        let path = self.below.join(&offer.info.path);
        match self.changed(vec![change]).await?.pop() {
            Some(Err(trouble)) => self.target.failed(path, trouble.message).await,
            _ => self.target.done(path, 0, FileDone::Touched).await,
        }
        Ok(())
    }

    /// Whether both sides have the same content, by its hash.
    async fn is_same(&self, offer: &Offer, modified_ns: i64) -> Result<bool, Trouble> {
        let size = offer.info.bytes;
        let there = Version { size, modified_ns };
        let path = self.to.join(&offer.info.path);
        let source = &self.sources[offer.holders[0].0];
        let here = hash(source, offer, Version { size, modified_ns: offer.info.modified_ns }, true);
        let there = self.sink.ask(Ask::Hash { path, version: there, purpose: Purpose::Put }, Bytes::new());
        match tokio::join!(here, there) {
            (Err(trouble), _) | (_, Err(trouble)) if matches!(trouble.kind, Kind::Lost | Kind::Closed) => Err(trouble),
            (Ok(here), Ok((Answer::Value(there), _))) => Ok(here == there),
            _ => Ok(false), // it is moved, and what is the matter is told then
        }
    }

    /// Looks at a file again that has changed, and moves what it is now.
    async fn again(self: &Arc<Self>, mut offer: Offer, was: Was, mut why: Trouble) -> Result<(), Trouble> {
        for _ in 0..AGAIN {
            let alive = |(source, _): &&(usize, i64)| !self.sources[*source].lost.load(Ordering::Relaxed);
            let number = offer.holders.iter().find(alive).map_or(offer.holders[0].0, |(source, _)| *source);
            let source = &self.sources[number];
            let path = source.root.join(&offer.info.path);
            let looked = source.place.look(&path, Purpose::Get, false).await;
            let info = match looked {
                Ok(looked) => looked.info.filter(|info| info.kind == FileKind::File),
                Err(trouble) if matches!(trouble.kind, Kind::Lost | Kind::Closed) => return Err(trouble),
                Err(_) => None,
            };
            let Some(info) = info else {
                why = Trouble::new(Kind::NotThere, format!("{path}: it is not there any more"));
                break;
            };
            let tally = &self.target.tally;
            tally.planned_bytes.fetch_add(info.bytes, Ordering::Relaxed);
            tally.planned_bytes.fetch_sub(offer.info.bytes, Ordering::Relaxed);
            offer.holders = vec![(number, info.modified_ns)];
            offer.info = crate::mesh::FileInfo { path: offer.info.path, ..info };
            match self.once_more(&offer, &was).await {
                Ok(bytes) => {
                    self.target.done(self.below.join(&offer.info.path), bytes, was.done()).await;
                    return Ok(());
                }
                Err(trouble) if matches!(trouble.kind, Kind::Lost | Kind::Closed) => return Err(trouble),
                Err(trouble) => why = trouble,
            }
            if why.kind != Kind::Changed {
                break;
            }
        }
        self.target.failed(self.below.join(&offer.info.path), why.message).await;
        Ok(())
    }

    async fn once_more(&self, offer: &Offer, was: &Was) -> Result<u64, Trouble> {
        if offer.info.bytes > CHUNK {
            return self.large(offer, was).await;
        }
        let source = &self.sources[offer.holders[0].0];
        let paths = vec![source.root.join(&offer.info.path)];
        let (Answer::Records(records), data) = source.place.ask(Ask::Read { paths }, Bytes::new()).await? else {
            return Err(unexpected());
        };
        let bytes = data.len() as u64;
        if *was == Was::InTheWay && matches!(records[..], [Record::Read { .. }]) {
            self.make_room([offer].into_iter()).await?;
        }
        let paths = vec![self.to.join(&offer.info.path)];
        match self.sink.ask(Ask::Write { paths, records }, data).await?.0 {
            Answer::Done(mut done) if done.len() == 1 => {
                done.remove(0).into_result()?;
                self.target.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(bytes)
            }
            _ => Err(unexpected()),
        }
    }

    /// Moves a file in chunks: what is there already is not moved again. Gives the bytes that were.
    async fn large(&self, offer: &Offer, was: &Was) -> Result<u64, Trouble> {
        let (mut counted, mut resumed) = (0, 0);
        let moved = self.chunks(offer, was, &mut counted, &mut resumed).await;
        if moved.is_err() {
            self.target.tally.bytes.fetch_sub(counted, Ordering::Relaxed);
            self.target.tally.resumed.fetch_sub(resumed, Ordering::Relaxed);
        }
        moved
    }

    async fn chunks(&self, offer: &Offer, was: &Was, counted: &mut u64, resumed: &mut u64) -> Result<u64, Trouble> {
        let size = offer.info.bytes;
        let version = Version { size, modified_ns: offer.info.modified_ns };
        let (path, count) = (self.to.join(&offer.info.path), chunks::count(size));
        let bits = self.begin(&path, version).await?;
        let mut held = Held::from_bytes(&bits, count).ok_or_else(unexpected)?;
        let mut holders = self.holders(offer, size);
        let mut hashing = self.hashing(offer, &holders);
        let mut agreed: Option<[u8; 32]> = None;
        let mut why = unexpected();
        let mut coming: FuturesUnordered<Coming<'_>> = FuturesUnordered::new();
        let (mut root, mut next, mut again, mut moved) = (Root::default(), 0, Vec::new(), 0);
        loop {
            while let Some(holder) = free(&holders) {
                let index = match again.pop() {
                    Some(index) => index,
                    None if next >= count || next >= root.reached() + AHEAD => break,
                    None => {
                        if held.count() > 0 && next % MOST_VALUES == 0 {
                            let more = self.resume(offer, version, &mut held, next, &mut root).await?;
                            *counted += more;
                            *resumed += more;
                        }
                        next += 1;
                        if held.has(next - 1) {
                            continue;
                        }
                        next - 1
                    }
                };
                holders[holder].asked += 1;
                coming.push(self.one_chunk(offer, version, holder, &holders, index, &path).boxed());
            }
            if coming.is_empty() && again.is_empty() && next >= count {
                break;
            }
            if coming.is_empty() && hashing.is_empty() {
                // All who had it are gone: the first that comes back is asked again.
                return Err(Trouble { kind: Kind::Changed, ..why });
            }
            tokio::select! {
                Some(came) = coming.next(), if !coming.is_empty() => {
                    holders[came.holder].asked -= 1;
                    match came.result {
                        Ok(value) => {
                            root.add(came.index, value);
                            let bytes = chunks::length(size, came.index) as u64;
                            (*counted, moved) = (*counted + bytes, moved + bytes);
                            self.target.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
                        }
                        // Another one has it, or may turn out to have it.
                        Err((trouble, Side::Source)) if others(&holders, came.holder) => {
                            if trouble.kind == Kind::Lost {
                                self.sources[holders[came.holder].source].lost.store(true, Ordering::Relaxed);
                            }
                            holders[came.holder].gone = true;
                            again.push(came.index);
                            why = trouble;
                        }
                        Err((trouble, _)) => return Err(trouble),
                    }
                }
                Some((holder, result)) = hashing.next(), if !hashing.is_empty() => match result {
                    Ok(hash) => {
                        holders[holder].hash = Some(hash);
                        if holder == 0 {
                            agreed = Some(hash);
                        }
                    }
                    Err(_) if holder == 0 => {} // its chunks will tell
                    Err(_) => holders[holder].gone = true,
                },
            }
            // What the first has counts. If it is gone, what the next has.
            if agreed.is_none() && holders[0].gone {
                agreed = holders.iter().find(|holder| !holder.gone).and_then(|holder| holder.hash);
            }
            if agreed.is_some() {
                for holder in &mut holders[1..] {
                    holder.joins = holder.hash == agreed;
                    holder.gone |= holder.hash.is_some() && holder.hash != agreed;
                }
            }
        }
        let root = root.finish(count).ok_or_else(|| Trouble::new(Kind::Changed, format!("{path}: it is not whole")))?;
        if agreed.is_some_and(|agreed| agreed != root) {
            return Err(Trouble::new(Kind::Changed, format!("{path}: those who have it have not the same")));
        }
        if *was == Was::InTheWay {
            self.make_room([offer].into_iter()).await?;
        }
        self.sink.ask(Ask::Finish { path, version, mode: offer.info.mode, root }, Bytes::new()).await?;
        Ok(moved)
    }

    /// What is there of a file. Who wrote it last may just be ending.
    async fn begin(&self, path: &SharePath, version: Version) -> Result<Vec<u8>, Trouble> {
        let until = Instant::now() + ENDS_WITHIN;
        loop {
            match self.sink.ask(Ask::Begin { path: path.clone(), version }, Bytes::new()).await {
                Ok((Answer::Begun(bits), _)) => return Ok(bits),
                Ok(_) => return Err(unexpected()),
                Err(trouble) if trouble.kind == Kind::Busy && Instant::now() < until => {
                    tokio::time::sleep(ENDS_WITHIN / 50).await; // then asks again; `until` ends it
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    fn holders(&self, offer: &Offer, size: u64) -> Vec<Holder> {
        let alive = |(source, _): &&(usize, i64)| !self.sources[*source].lost.load(Ordering::Relaxed);
        let mut all: Vec<(usize, i64)> = offer.holders.iter().filter(alive).copied().collect();
        if all.is_empty() {
            all = offer.holders[..1].to_vec();
        }
        let holder = |(at, (source, modified_ns)): (usize, (usize, i64))| {
            let version = Version { size, modified_ns };
            Holder { source, version, asked: 0, hash: None, joins: at == 0, gone: false }
        };
        all.into_iter().enumerate().map(holder).collect()
    }

    /// If several have a file: the hash of each, so that chunks of different files are not put together.
    fn hashing<'a>(&'a self, offer: &'a Offer, holders: &[Holder]) -> FuturesUnordered<Hashing<'a>> {
        let several = holders.len() > 1;
        let one = |(at, holder): (usize, &Holder)| {
            let (source, version) = (&self.sources[holder.source], holder.version);
            async move { (at, hash(source, offer, version, false).await) }.boxed()
        };
        holders.iter().enumerate().filter(|_| several).map(one).collect()
    }

    fn one_chunk<'a>(
        &'a self,
        offer: &'a Offer,
        version: Version,
        holder: usize,
        holders: &[Holder],
        index: u64,
        to: &SharePath,
    ) -> impl Future<Output = Came> + use<'a> {
        let source = &self.sources[holders[holder].source];
        let ask = Ask::Chunk { path: source.root.join(&offer.info.path), version: holders[holder].version, index };
        let (waits, to) = (!others(holders, holder), to.clone());
        async move {
            let moved = async {
                let _room = self.target.room.acquire().await;
                let (answer, bytes) =
                    source.place.ask_waiting(ask, Bytes::new(), waits).await.map_err(|why| (why, Side::Source))?;
                let Answer::Value(value) = answer else { return Err((unexpected(), Side::Source)) };
                let put = Ask::Put { path: to, version, index, value };
                let done = self.sink.ask(put, bytes).await;
                done.map(|_| value).map_err(|why| {
                    // Bytes that are not what they were said to be are the fault of who said it.
                    let side = if why.kind == Kind::Changed { Side::Source } else { Side::Sink };
                    (why, side)
                })
            };
            Came { holder, index, result: moved.await }
        }
    }

    /// Of the next chunks, keeps those that are there and are what the source has. Gives their bytes.
    async fn resume(
        &self,
        offer: &Offer,
        version: Version,
        held: &mut Held,
        first: u64,
        root: &mut Root,
    ) -> Result<u64, Trouble> {
        let last = (first + MOST_VALUES).min(chunks::count(version.size));
        if !(first..last).any(|index| held.has(index)) {
            return Ok(0);
        }
        let source = &self.sources[offer.holders[0].0];
        let (from, to) = (source.root.join(&offer.info.path), self.to.join(&offer.info.path));
        let count = last - first;
        let (ours, theirs) = tokio::join!(
            source.place.ask(Ask::Values { path: from, version, first, count }, Bytes::new()),
            self.sink.ask(Ask::Held { path: to, version, first, count }, Bytes::new()),
        );
        let (Answer::Values(ours), Answer::Values(theirs)) = (ours?.0, theirs?.0) else { return Err(unexpected()) };
        if ours.len() as u64 != count * 32 || theirs.len() as u64 != count * 32 {
            return Err(unexpected());
        }
        let mut resumed = 0;
        let both = ours.as_chunks::<32>().0.iter().zip(theirs.as_chunks::<32>().0);
        for ((value, there), index) in both.zip(first..last) {
            if held.has(index) && value == there {
                root.add(index, *value);
                resumed += chunks::length(version.size, index) as u64;
            } else {
                held.set(index, false);
            }
        }
        self.target.tally.resumed.fetch_add(resumed, Ordering::Relaxed);
        self.target.tally.bytes.fetch_add(resumed, Ordering::Relaxed);
        Ok(resumed)
    }
}

async fn hash(source: &Source, offer: &Offer, version: Version, waits: bool) -> Result<[u8; 32], Trouble> {
    let ask = Ask::Hash { path: source.root.join(&offer.info.path), version, purpose: Purpose::Get };
    match source.place.ask_waiting(ask, Bytes::new(), waits).await?.0 {
        Answer::Value(hash) => Ok(hash),
        _ => Err(unexpected()),
    }
}

/// Who has the fewest chunks to bring, and may be asked for one more: so who is slow is asked less.
fn free(holders: &[Holder]) -> Option<usize> {
    let can = |(_, holder): &(usize, &Holder)| holder.joins && !holder.gone && holder.asked < IN_FLIGHT;
    holders.iter().enumerate().filter(can).min_by_key(|(_, holder)| holder.asked).map(|(at, _)| at)
}

fn others(holders: &[Holder], one: usize) -> bool {
    holders.iter().enumerate().any(|(at, holder)| at != one && !holder.gone)
}

/// Chunks that one source is asked for at a time, of one file.
const IN_FLIGHT: usize = 8;
/// How far the chunks under way may be apart.
const AHEAD: u64 = 64;
/// How long a file may still be held by a transfer that was ended.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// How often a file that changes while it is read is tried.
const AGAIN: usize = 3;
/// Small files in a row that are got from one of several sources.
const TOGETHER: usize = 64;
