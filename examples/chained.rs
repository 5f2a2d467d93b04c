//! Stages in a chain: each works only while somebody wants its result.
//!
//! ```sh
//! cargo run --example chained
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use meshd::{NetworkKey, Node};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let camera = Node::builder("camera").key(key).listen(["127.0.0.1:0"]).mdns(false).start().await?;
    let (scaler, viewer) = (camera.sibling("scaler").await?, camera.sibling("viewer").await?);

    // The camera takes a picture only if somebody listens.
    let source = tokio::spawn(async move {
        let raw = camera.publisher("frames/raw")?;
        for number in 1.. {
            raw.send_with(|| take_picture(number)).await?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, meshd::SendError>(())
    });

    // The scaler listens to the camera only while somebody listens to the scaler.
    let stage = tokio::spawn(async move {
        let small = scaler.publisher("frames/small").expect("a topic");
        let mut raw = small.while_listened("frames/raw");
        while let Ok(Some(frame)) = raw.next().await {
            let number: u32 = frame.decode().expect("the camera sends numbers");
            small.send(&(number * 10)).await.expect("a number can be encoded");
        }
    });

    for round in 1..=2 {
        println!("nobody wants pictures: the camera rests");
        sleep(Duration::from_millis(500)).await;
        println!("the viewer listens for the time {round}");
        let mut frames = viewer.listen("frames/small").await?;
        for _ in 0..3 {
            let frame = frames.next().await.ok_or("the mesh has ended")?;
            println!("  the viewer sees {}", frame.decode::<u32>()?);
        }
    } // the subscription ends here, and with it the scaler's

    source.abort();
    stage.abort();
    viewer.shutdown().await;
    Ok(())
}

fn take_picture(number: u32) -> u32 {
    println!("  the camera takes picture {number}");
    number
}
