//! Sends small messages at a steady rate: 100,000 a second for 10 s, say. Messages carry their number, from 0.
//!
//! ```sh
//! MESHD_KEY_FILE=~/.local/share/meshd/default/key cargo run --release --example steady -- readings/a 100000 10 100
//! ```
//!
//! Arguments: topic, messages a second, seconds, bytes of a message.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::env;
use std::error::Error;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use meshd::{Codec, NetworkKey, Node, SendOptions};
use tokio::time::{Instant, interval};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::read(env::var("MESHD_KEY_FILE")?)?;
    let mut args = env::args().skip(1);
    let topic = args.next().unwrap_or_else(|| "readings/a".to_owned());
    let mut number = |default: u64| args.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (rate, seconds, bytes) = (number(1000)?, number(10)?, number(100)?);

    let node = Node::builder("steady").key(key).start().await?;
    let readings = node.publisher(&topic)?;
    if readings.wait_for_listeners(1, Duration::from_secs(20)).await == 0 {
        return Err(format!("nobody listens to {topic}").into());
    }
    // A timer cannot do it for each message: each millisecond, those go out that are due by then.
    let (began, mut ticks) = (Instant::now(), interval(Duration::from_millis(1)));
    let (mut sent, mut dropped, all) = (0, 0, rate * seconds);
    while sent < all {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due.min(all) {
            let mut payload = BytesMut::with_capacity(bytes as usize);
            payload.put_u64(sent);
            payload.resize((bytes as usize).max(8), 0);
            let report = readings.publish(Codec::Bytes, payload.freeze(), &SendOptions::default()).await?;
            dropped += report.dropped.len();
            sent += 1;
        }
    }
    println!("sent {sent} messages in {:.3} s, dropped {dropped}", began.elapsed().as_secs_f64());
    node.shutdown().await; // what is still queued goes out
    Ok(())
}
