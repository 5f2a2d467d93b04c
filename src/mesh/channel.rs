//! One end of a channel: what it keeps until the far end's program has it, what it may send, and what it has to say next.
//!
//! Nothing here waits or sends. What comes in is [`End::hear`]; what goes out is [`End::say`], until it has nothing more to
//! say. Items stay kept until the program at the far end took them: so a link that is lost, or a far end that is handed
//! over, loses nothing, and numbers make sure that nothing comes twice.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Codec, Failure, delivery};

/// What a channel carries: a payload, and how it is encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// How the payload is encoded.
    pub codec: Codec,
    /// The content.
    pub payload: Bytes,
}

impl Item {
    /// What it takes of a window.
    fn cost(&self) -> usize {
        self.payload.len() + ITEM_COST
    }
}

/// One end of a channel.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// Items that the far program has not taken, as far as is known. The first of them has the number `first`.
    kept: VecDeque<Item>,
    first: u64,
    /// The number of the item that goes out next. Means nothing while `synced` is not set.
    sent: u64,
    /// Costs of what is kept and of `held`; of that, what is on its way or not taken.
    in_flight: usize,
    flying: usize,
    /// Costs of items that who held this end before had sent, and that are not taken yet.
    held: usize,
    /// How much the far end takes.
    room: usize,
    mine: Mine,
    /// Nothing more is sent, whatever else.
    ended: bool,
    ended_told: bool,
    /// What became of this end is said on this link.
    told: bool,
    /// And the far end knows.
    acked: bool,

    queue: VecDeque<Item>,
    queued: usize,
    /// How much this end takes.
    window: usize,
    received: u64,
    /// How many the program took, and the costs of those of them that the far end was not told of.
    consumed: u64,
    uncredited: usize,
    /// Items before this one came from who held the far end before: who holds it now does not have them.
    base: u64,
    /// How many of those have been given back on this link, and what the far end gave back so.
    given_back: usize,
    returned: VecDeque<Item>,
    returned_bytes: usize,
    theirs: Option<TheirEnd>,
    done_said: bool,

    linked: bool,
    resume_due: bool,
    /// It is known what the far end has received: items may go out.
    synced: bool,
}

/// What the program of this end did with it.
#[derive(Debug, Default, PartialEq, Eq)]
enum Mine {
    #[default]
    Open,
    Closed(Option<Failure>),
    HandedOver,
}

/// How the far end ended, or what cut this one off from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TheirEnd {
    /// It sends nothing more, and goes on reading.
    Ended,
    Closed,
    Failed(Failure),
    Lost(Lost),
}

/// Why a conversation cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lost {
    /// The far end's peer ended, or did not come back in time.
    Disconnected,
    /// The far end's peer knows nothing of it any more.
    Gone,
    /// It was handed over, and nobody took it in time.
    NotAdopted,
    /// Both ends were handed over at the same time.
    BothHandedOver,
    /// This peer has shut down.
    Shutdown,
}

/// What one end says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// Over a new link: this is how far I am.
    Resume {
        received: u64,
        consumed: u64,
    },
    /// My program took so many items, all in all.
    Credit {
        consumed: u64,
    },
    Item {
        seq: u64,
        item: Item,
    },
    /// An item that came from who held your end before, and that my program did not take: whoever adopts gets it from you.
    Return {
        seq: u64,
        item: Item,
    },
    /// This was all: so many items.
    Close {
        seq: u64,
        closing: Closing,
    },
    /// My program gave this end away.
    Detach {
        seq: u64,
        consumed: u64,
    },
    /// All that you sent is taken or not wanted: forget me.
    Done,
    /// There is no such end, or it does not speak with you.
    Gone,
}

/// How an end closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It sends nothing more, and goes on reading.
    Ended,
    Closed,
    Failed(Failure),
}

/// What a program finds when it wants the next item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Item(Item),
    End(TheirEnd),
}

/// Where a conversation stands, for who takes over the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The number of the next item from the adopter.
    pub(crate) received: u64,
    /// The number of the next item to the adopter.
    pub(crate) next: u64,
    /// What earlier items still take of the window.
    pub(crate) held: usize,
    /// Who held the end before said that nothing more comes from it.
    pub(crate) ended: bool,
}

/// The far end did what the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the far end does not keep to the protocol: {0}")]
pub(crate) struct Violation(&'static str);

impl End {
    /// An end that speaks with nobody yet.
    pub(crate) fn new(window: usize) -> Self {
        Self { window, ..Self::default() }
    }

    /// The end of a conversation that is over.
    pub(crate) fn over(theirs: TheirEnd) -> Self {
        Self { theirs: Some(theirs), done_said: true, ..Self::default() }
    }

    /// The far end is there, and takes so much.
    pub(crate) fn open(&mut self, room: usize) {
        self.room = room;
        (self.linked, self.synced) = (true, true);
    }

    /// This end goes on where another stopped.
    pub(crate) fn go_on(&mut self, room: usize, standing: &Standing) {
        (self.first, self.sent) = (standing.received, standing.received);
        (self.held, self.in_flight, self.flying) = (standing.held, standing.held, standing.held);
        (self.received, self.consumed) = (standing.next, standing.next);
        (self.ended, self.ended_told) = (standing.ended, standing.ended);
        self.open(room);
    }

    // What its program does.

    /// Whether an item may be sent now. If not, it may when the far program took some.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < self.room
    }

    /// Whether anything can be sent at all, now or later.
    pub(crate) fn is_sending(&self) -> bool {
        self.mine == Mine::Open && !self.ended && matches!(self.theirs, None | Some(TheirEnd::Ended))
    }

    /// Sends an item. There is room.
    pub(crate) fn send(&mut self, item: Item) {
        self.in_flight += item.cost();
        self.kept.push_back(item);
    }

    /// What comes next; `None`: nothing yet. The end comes again and again.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if self.mine != Mine::Open {
            return Some(Taken::End(TheirEnd::Closed));
        }
        let Some(item) = self.queue.pop_front() else { return self.theirs.clone().map(Taken::End) };
        self.consumed += 1;
        self.uncredited += item.cost();
        self.queued -= item.cost();
        Some(Taken::Item(item))
    }

    /// Whether there is something to take.
    pub(crate) fn is_readable(&self) -> bool {
        !self.queue.is_empty() || self.theirs.is_some() || self.mine != Mine::Open
    }

    /// How the far end ended, or what became of it. Items may still wait to be taken.
    pub(crate) fn their_end(&self) -> Option<&TheirEnd> {
        self.theirs.as_ref()
    }

    /// Whether this end was closed here.
    pub(crate) fn is_closed_here(&self) -> bool {
        self.mine != Mine::Open
    }

    /// Sends nothing more, and goes on reading.
    pub(crate) fn finish(&mut self) {
        self.ended = true;
    }

    /// Sends nothing more and reads nothing more.
    pub(crate) fn close(&mut self, failure: Option<Failure>) {
        if self.mine == Mine::Open {
            self.mine = Mine::Closed(failure);
            self.queue.clear();
            self.queued = 0;
        }
    }

    /// Gives this end away. If the conversation is over, there is nothing to give but how it ended.
    pub(crate) fn hand_over(&mut self) -> Result<(), TheirEnd> {
        match (&self.mine, &self.theirs) {
            (Mine::Open, Some(end @ (TheirEnd::Closed | TheirEnd::Failed(_)))) if self.queue.is_empty() => {
                return Err(end.clone());
            }
            (Mine::Open, Some(end @ TheirEnd::Lost(_))) => return Err(end.clone()),
            (Mine::Open, _) => {}
            _ => return Err(TheirEnd::Closed),
        }
        let lacking = usize::try_from(self.base.saturating_sub(self.consumed)).unwrap_or(usize::MAX);
        self.queue.truncate(lacking); // the rest, the far end has kept
        self.mine = Mine::HandedOver;
        Ok(())
    }

    // What happens to the far end.

    /// A link to the far end's peer stands.
    pub(crate) fn link(&mut self) {
        self.unlink();
        (self.linked, self.resume_due) = (true, true);
    }

    /// It is lost.
    pub(crate) fn unlink(&mut self) {
        (self.linked, self.resume_due, self.synced) = (false, false, false);
        (self.ended_told, self.told) = (false, false);
        self.given_back = 0;
    }

    /// The conversation cannot go on.
    pub(crate) fn lose(&mut self, lost: Lost) {
        if !matches!(self.theirs, Some(TheirEnd::Closed | TheirEnd::Failed(_) | TheirEnd::Lost(_))) {
            self.drop_kept();
            self.theirs = Some(TheirEnd::Lost(lost));
        }
        self.acked = true;
        self.done_said = true; // there is nobody to be told
    }

    /// The conversation cannot go on, and both programs are told why: gives what is to be said to the other.
    pub(crate) fn fail(&mut self, failure: &Failure) -> Say {
        let closing = Closing::Failed(failure.clone());
        let say = Say::Close { seq: self.sent, closing };
        self.theirs = Some(TheirEnd::Failed(failure.clone()));
        self.drop_kept();
        self.done_said = true;
        say
    }

    /// The far end's program gave it away and nobody holds it now, or whoever does cannot be heard any more. What it gave
    /// back is kept again.
    fn detach(&mut self) {
        while let Some(item) = self.returned.pop_back() {
            self.first -= 1;
            self.kept.push_front(item);
        }
        self.drop_returned();
        self.unlink();
        (self.sent, self.flying, self.held) = (self.first, 0, 0);
        self.in_flight = self.kept.iter().map(Item::cost).sum();
    }

    /// The far end's peer is gone, but somebody has the handle.
    pub(crate) fn abandon(&mut self) {
        self.drop_returned();
        self.detach();
    }

    /// Somebody holds the far end now, and takes so much. Says where the conversation stands.
    pub(crate) fn adopted(&mut self, room: usize) -> Standing {
        self.unlink();
        self.open(room);
        (self.sent, self.flying) = (self.first, 0);
        self.base = self.received;
        self.uncredited = 0; // they are told by what is said now
        let ended = self.theirs == Some(TheirEnd::Ended);
        Standing { received: self.received, next: self.first, held: self.queued, ended }
    }

    /// Whether nothing is left to be done here, and this end can be forgotten.
    pub(crate) fn is_over(&self) -> bool {
        match self.mine {
            _ if matches!(self.theirs, Some(TheirEnd::Lost(_))) || self.done_said => true,
            Mine::Closed(_) => self.acked || self.theirs_closed(),
            Mine::HandedOver => self.acked,
            Mine::Open => false,
        }
    }

    /// Whether this end was given away: nobody takes up a conversation with it.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.mine == Mine::HandedOver
    }

    fn theirs_closed(&self) -> bool {
        matches!(self.theirs, Some(TheirEnd::Closed | TheirEnd::Failed(_)))
    }

    fn next(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// Nobody will take what is kept.
    fn drop_kept(&mut self) {
        self.first = self.next();
        self.sent = self.first;
        self.kept.clear();
        (self.in_flight, self.flying, self.held) = (0, 0, 0);
    }

    /// What was given back is kept, or comes again.
    fn drop_returned(&mut self) {
        self.returned.clear();
        self.returned_bytes = 0;
    }

    // What it says.

    /// What is to be said next. It goes on saying the same until it [`was_said`](End::was_said).
    pub(crate) fn say(&self) -> Option<Say> {
        if self.linked && self.resume_due {
            return Some(Say::Resume { received: self.received, consumed: self.consumed });
        }
        if !self.synced || self.done_said {
            return None;
        }
        let handed_over = self.mine == Mine::HandedOver;
        if self.theirs_closed() && !handed_over && (self.queue.is_empty() || self.mine != Mine::Open) {
            return Some(Say::Done);
        }
        if self.credit_is_due() {
            return Some(Say::Credit { consumed: self.consumed });
        }
        if self.sent < self.next() {
            if self.flying >= self.room {
                return None;
            }
            let item = self.kept.get((self.sent - self.first) as usize)?;
            return Some(Say::Item { seq: self.sent, item: item.clone() });
        }
        if self.ended && !self.ended_told {
            return Some(Say::Close { seq: self.next(), closing: Closing::Ended });
        }
        match &self.mine {
            _ if self.told => None,
            Mine::Open => None,
            Mine::Closed(None) => Some(Say::Close { seq: self.next(), closing: Closing::Closed }),
            Mine::Closed(Some(failure)) => {
                Some(Say::Close { seq: self.next(), closing: Closing::Failed(failure.clone()) })
            }
            Mine::HandedOver => Some(match self.queue.get(self.given_back) {
                Some(item) => Say::Return { seq: self.consumed + self.given_back as u64, item: item.clone() },
                None => Say::Detach { seq: self.next(), consumed: self.consumed },
            }),
        }
    }

    /// It is on its way.
    pub(crate) fn was_said(&mut self, say: &Say) {
        match say {
            Say::Resume { .. } | Say::Credit { .. } => {
                self.resume_due = false;
                self.uncredited = 0;
            }
            Say::Item { item, .. } => {
                self.sent += 1;
                self.flying += item.cost();
            }
            Say::Return { .. } => self.given_back += 1,
            Say::Close { closing: Closing::Ended, .. } => self.ended_told = true,
            Say::Close { .. } | Say::Detach { .. } => self.told = true,
            Say::Done => self.done_said = true,
            Say::Gone => {}
        }
    }

    /// Told late enough to cost little, and soon enough that who waits for room never waits for more than is taken: with all
    /// taken, what is not told is far less than a window.
    fn credit_is_due(&self) -> bool {
        let least = if self.queue.is_empty() { self.window / 16 } else { self.window / 2 };
        self.mine == Mine::Open && self.uncredited >= least.max(1)
    }

    // What it hears.

    /// The far end says something.
    pub(crate) fn hear(&mut self, say: Say) -> Result<(), Violation> {
        match say {
            Say::Resume { received, consumed } => self.resume(received, consumed),
            Say::Credit { consumed } => self.credit(consumed),
            Say::Item { seq, item } => self.item(seq, item),
            Say::Return { seq, item } => self.give_back(seq, item),
            Say::Close { seq, closing } => self.their_close(seq, closing),
            Say::Detach { seq, consumed } => {
                self.expect_all(seq)?;
                self.credit(consumed)?;
                if consumed.checked_add(self.returned.len() as u64) != Some(self.first) {
                    return Err(Violation("items are missing that nobody else has"));
                }
                self.detach();
                Ok(())
            }
            Say::Done | Say::Gone if self.mine != Mine::Open => {
                self.acked = true;
                Ok(())
            }
            Say::Done => Err(Violation("done before the end")),
            Say::Gone => {
                self.lose(Lost::Gone);
                Ok(())
            }
        }
    }

    fn resume(&mut self, received: u64, consumed: u64) -> Result<(), Violation> {
        self.credit(consumed)?;
        self.drop_returned();
        if received < self.first && !self.kept.is_empty() || received > self.next() {
            return Err(Violation("a resume from where nothing is"));
        }
        self.sent = received.max(self.first);
        let there = (self.sent - self.first) as usize;
        self.flying = self.held + self.kept.iter().take(there).map(Item::cost).sum::<usize>();
        self.synced = true;
        Ok(())
    }

    fn credit(&mut self, consumed: u64) -> Result<(), Violation> {
        if consumed > self.next() {
            return Err(Violation("a credit for what was not sent"));
        }
        if consumed >= self.first && self.held > 0 {
            self.in_flight -= self.held;
            self.flying = self.flying.saturating_sub(self.held);
            self.held = 0;
        }
        while self.first < consumed {
            let Some(item) = self.kept.pop_front() else { break };
            self.in_flight -= item.cost();
            if self.first < self.sent {
                self.flying = self.flying.saturating_sub(item.cost());
            }
            self.first += 1;
        }
        self.sent = self.sent.max(self.first);
        Ok(())
    }

    fn item(&mut self, seq: u64, mut item: Item) -> Result<(), Violation> {
        if self.mine != Mine::Open || seq < self.received {
            return Ok(()); // not wanted any more, or here already
        }
        if seq > self.received || self.theirs.is_some() {
            return Err(Violation("an item out of turn"));
        }
        if self.queued >= self.window {
            return Err(Violation("more items than the window allows"));
        }
        self.received += 1;
        self.queued += item.cost();
        if !self.queue.is_empty() {
            delivery::to_wait(&mut item.payload);
        }
        self.queue.push_back(item);
        Ok(())
    }

    fn give_back(&mut self, seq: u64, item: Item) -> Result<(), Violation> {
        // The far end has had them within its window.
        if seq >= self.first || self.returned_bytes >= self.room {
            return Err(Violation("an item given back out of turn"));
        }
        self.returned_bytes += item.cost();
        self.returned.push_back(item);
        Ok(())
    }

    fn their_close(&mut self, seq: u64, closing: Closing) -> Result<(), Violation> {
        self.expect_all(seq)?;
        match closing {
            Closing::Ended => {
                self.theirs.get_or_insert(TheirEnd::Ended);
            }
            Closing::Closed | Closing::Failed(_) if self.theirs_closed() => {}
            Closing::Closed => self.theirs = Some(TheirEnd::Closed),
            Closing::Failed(failure) => self.theirs = Some(TheirEnd::Failed(failure)),
        }
        if self.theirs_closed() {
            self.drop_kept();
        }
        Ok(())
    }

    /// All that was sent came before.
    fn expect_all(&self, seq: u64) -> Result<(), Violation> {
        if self.mine == Mine::Open && seq != self.received {
            return Err(Violation("an end before all items"));
        }
        Ok(())
    }
}

/// What one end takes before its program took some: more lets a fast sender run on while the reader does something else.
/// One item may go over it.
pub(crate) const WINDOW: usize = 256 << 10;
/// What an item takes of the window besides its bytes.
const ITEM_COST: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: usize = 500;

    fn item(number: u64, size: usize) -> Item {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(8 + size, 0);
        Item { codec: Codec::Bytes, payload: payload.into() }
    }

    fn number(item: &Item) -> u64 {
        u64::from_be_bytes(*item.payload.first_chunk().unwrap())
    }

    /// Two ends and what is on its way between them.
    struct Pair {
        ends: [End; 2],
        wires: [VecDeque<Say>; 2],
        sent: [u64; 2],
        taken: [u64; 2],
        ended: [Option<TheirEnd>; 2],
    }

    impl Pair {
        fn new() -> Self {
            let mut ends = [End::new(SMALL), End::new(SMALL)];
            ends.iter_mut().for_each(|end| end.open(SMALL));
            Self { ends, wires: Default::default(), sent: [0; 2], taken: [0; 2], ended: [None, None] }
        }

        fn send(&mut self, who: usize, size: usize) {
            if self.ends[who].is_sending() && self.ends[who].has_room() {
                self.ends[who].send(item(self.sent[who], size));
                self.sent[who] += 1;
            }
            self.say(who);
        }

        fn say(&mut self, who: usize) {
            while let Some(say) = self.ends[who].say() {
                self.ends[who].was_said(&say);
                self.wires[who].push_back(say);
            }
        }

        fn deliver(&mut self, who: usize) -> bool {
            let Some(say) = self.wires[who].pop_front() else { return false };
            if self.ends[1 - who].is_over() {
                // Forgotten: whoever speaks to it is told so.
                if !matches!(say, Say::Credit { .. } | Say::Done | Say::Gone) {
                    self.wires[1 - who].push_back(Say::Gone);
                }
                return true;
            }
            self.ends[1 - who].hear(say).unwrap();
            self.say(1 - who);
            true
        }

        fn take(&mut self, who: usize) -> bool {
            let taken = self.ends[who].take();
            self.say(who);
            match taken {
                Some(Taken::Item(item)) => {
                    assert_eq!(self.ended[who], None, "nothing comes after the end");
                    assert_eq!(number(&item), self.taken[who], "in order, each once");
                    self.taken[who] += 1;
                    true
                }
                Some(Taken::End(end)) => {
                    assert!(self.ended[who].is_none() || self.ended[who] == Some(end.clone()), "repeatably");
                    self.ended[who] = Some(end);
                    false
                }
                None => false,
            }
        }

        fn cut(&mut self) {
            self.wires = Default::default();
            for who in [0, 1] {
                self.ends[who].unlink();
                self.ends[who].link();
            }
            [0, 1]
                .into_iter()
                .filter(|who| !self.ends[*who].is_over())
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|who| self.say(who));
        }

        fn settle(&mut self, readers: &[usize]) {
            loop {
                let mut moved = false;
                for who in [0, 1] {
                    moved |= self.deliver(who);
                }
                for who in readers {
                    moved |= self.take(*who);
                }
                if !moved {
                    return;
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send(usize, usize),
        Take(usize),
        Deliver(usize),
        Cut,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..2usize, 0..400usize).prop_map(|(who, size)| Step::Send(who, size)),
            5 => (0..2usize).prop_map(Step::Take),
            8 => (0..2usize).prop_map(Step::Deliver),
            1 => Just(Step::Cut),
        ]
    }

    /// Numbers that items may have, or nearly.
    fn place() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 0..20u64, 1 => (1 << 63) - 10..(1 << 63) + 10u64, 1 => u64::MAX - 5..=u64::MAX]
    }

    fn run(pair: &mut Pair, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(who, size) => pair.send(who, size),
                Step::Take(who) => drop(pair.take(who)),
                Step::Deliver(who) => drop(pair.deliver(who)),
                Step::Cut => pair.cut(),
            }
            for end in &pair.ends {
                assert!(end.queued < SMALL + 500 && end.in_flight < SMALL + 500, "bounded: {end:?}");
            }
        }
    }

    /// Somebody else takes over the end 0: a new end in its place. What the old one has to say is said before, over links
    /// that are cut after so many frames.
    fn hand_over(pair: &mut Pair, mut cuts: Vec<usize>) {
        pair.ends[0].hand_over().unwrap();
        pair.say(0);
        let (mut orphaned, mut delivered) = (false, 0);
        while !pair.ends[0].is_over() {
            if cuts.first().is_some_and(|cut| delivered >= *cut) {
                (delivered, pair.wires) = (0, Default::default());
                cuts.remove(0);
                for who in if orphaned { 0..1 } else { 0..2 } {
                    pair.ends[who].unlink();
                    pair.ends[who].link();
                    pair.say(who);
                }
            }
            delivered += 1;
            if let Some(say) = pair.wires[0].pop_front() {
                if orphaned {
                    pair.wires[1].push_back(Say::Gone);
                } else {
                    orphaned = matches!(say, Say::Detach { .. });
                    pair.ends[1].hear(say).unwrap();
                    if orphaned {
                        pair.wires[1].push_back(Say::Done);
                    } else {
                        pair.say(1);
                    }
                }
            }
            if let Some(say) = pair.wires[1].pop_front() {
                pair.ends[0].hear(say).unwrap();
                pair.say(0);
            }
        }
        assert!(orphaned);
        pair.wires = Default::default();
        let standing = pair.ends[1].adopted(SMALL);
        pair.ends[0] = End::new(SMALL);
        pair.ends[0].go_on(SMALL, &standing);
        pair.say(1);
    }

    fn swap(pair: &mut Pair) {
        pair.ends.swap(0, 1);
        pair.wires.swap(0, 1);
        pair.sent.swap(0, 1);
        pair.taken.swap(0, 1);
        pair.ended.swap(0, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn over_links_that_come_and_go_everything_comes_once_and_in_order_and_then_the_end(
            steps in prop::collection::vec(step(), 0..120),
            more in prop::collection::vec(step(), 0..30),
            fails in any::<bool>(),
        ) {
            let mut pair = Pair::new();
            run(&mut pair, steps);
            let failure = fails.then(|| Failure::new("kind", "text"));
            pair.ends[0].close(failure.clone());
            pair.say(0);
            let sent = pair.sent[0];
            run(&mut pair, more);
            pair.settle(&[1]);
            prop_assert_eq!(pair.taken[1], sent);
            prop_assert_eq!(pair.ended[1].clone(), Some(failure.map_or(TheirEnd::Closed, TheirEnd::Failed)));
            prop_assert!(pair.ends[0].is_over() && pair.ends[1].is_over(), "{:?}", pair.ends);
            pair.take(1);
        }

        #[test]
        fn nobody_waits_for_ever(steps in prop::collection::vec(step(), 0..120)) {
            let mut pair = Pair::new();
            run(&mut pair, steps);
            pair.settle(&[0, 1]);
            prop_assert_eq!([pair.taken[1], pair.taken[0]], pair.sent);
            prop_assert!(pair.ends.iter().all(End::has_room));
        }

        #[test]
        fn whoever_takes_over_an_end_loses_nothing_and_gets_nothing_twice(
            rounds in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(step(), 0..60), prop::collection::vec(0..12usize, 0..3)),
                1..6,
            ),
            finishes in any::<bool>(),
        ) {
            let mut pair = Pair::new();
            for (other, steps, cuts) in rounds {
                run(&mut pair, steps);
                if other {
                    swap(&mut pair);
                }
                hand_over(&mut pair, cuts);
            }
            if finishes {
                pair.ends[0].finish();
                pair.say(0);
                pair.settle(&[]);
                hand_over(&mut pair, vec![]);
                assert!(!pair.ends[0].is_sending());
            }
            pair.settle(&[0, 1]);
            prop_assert_eq!([pair.taken[1], pair.taken[0]], pair.sent);
            prop_assert_eq!(pair.ended[1].is_some(), finishes);
        }

        #[test]
        fn nothing_that_is_heard_panics(
            says in prop::collection::vec((0..8u8, place(), place()), 0..60),
            standing in prop::option::of((place(), place(), any::<u32>(), any::<bool>())),
        ) {
            let mut pair = Pair::new();
            if let Some((received, next, held, ended)) = standing {
                let (received, next) = (received & (u64::MAX >> 1), next & (u64::MAX >> 1));
                pair.ends[0].go_on(SMALL, &Standing { received, next, held: held as usize, ended });
            }
            for (kind, a, b) in says {
                let say = match kind {
                    0 => Say::Resume { received: a, consumed: b },
                    1 => Say::Credit { consumed: a },
                    2 => Say::Item { seq: a, item: item(a, 10) },
                    3 => Say::Return { seq: a, item: item(a, 10) },
                    4 => Say::Close { seq: a, closing: Closing::Ended },
                    5 => Say::Detach { seq: a, consumed: b },
                    6 => Say::Close { seq: a, closing: Closing::Closed },
                    _ => Say::Done,
                };
                pair.send(0, 10);
                let _ = pair.ends[0].hear(say);
                pair.say(0);
                let _ = pair.ends[0].take();
            }
        }
    }

    #[test]
    fn small_items_that_wait_behind_others_do_not_keep_what_they_were_read_from() {
        let mut end = End::new(WINDOW);
        let buffer = Bytes::from(vec![7; 64 << 10]);
        for seq in 0..3 {
            let item = Item { codec: Codec::Bytes, payload: buffer.slice(1000..1010) };
            end.hear(Say::Item { seq, item }).unwrap();
        }
        let Some(Taken::Item(first)) = end.take() else { panic!("nothing came") };
        assert_eq!(first.payload.as_ptr(), buffer[1000..].as_ptr(), "not copied: it waits behind nothing");
        drop(first);
        assert!(buffer.is_unique());
        assert!(end.queue.iter().all(|item| item.payload[..] == [7; 10]));
    }

    #[test]
    fn who_sends_more_than_the_window_breaks_the_rules() {
        let mut end = End::new(SMALL);
        end.open(SMALL);
        let sent = (0..100).take_while(|seq| end.hear(Say::Item { seq: *seq, item: item(*seq, 28) }).is_ok()).count();
        assert_eq!(sent, SMALL / 100);
    }
}
