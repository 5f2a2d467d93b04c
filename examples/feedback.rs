//! A feedback loop: a room tells its temperature, a controller answers with how much to heat, and a service sets the goal.
//!
//! ```sh
//! cargo run --example feedback
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meshd::{Failure, NetworkKey, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    // The controller: what it hears of the room, and the set point, make the power of the heater.
    let controller = peer("controller").start().await?;
    let goal = Arc::new(AtomicU32::new(18));
    let set = Arc::clone(&goal);
    let set_goal = move |degrees: u32| {
        let before = set.swap(degrees, Ordering::Relaxed);
        async move { Ok::<u32, Failure>(before) }
    };
    let _set = controller.serve("room/set-point", set_goal).await?;
    let (mut temperatures, heater) =
        (controller.listen("room/temperature").await?, controller.publisher("room/heater")?);
    tokio::spawn(async move {
        heater.wait_for_listeners(1, Duration::from_secs(10)).await;
        while let Some(message) = temperatures.next().await {
            let temperature: f64 = message.decode().expect("the room sends numbers");
            let power = (f64::from(goal.load(Ordering::Relaxed)) - temperature).clamp(0.0, 10.0);
            heater.send(&power).await.expect("a number can be encoded");
        }
    });

    // The room: it cools by itself, and the heater warms it.
    let room = peer("room").start().await?;
    let (mut heater, thermometer) = (room.listen("room/heater").await?, room.publisher("room/temperature")?);
    thermometer.wait_for_listeners(1, Duration::from_secs(10)).await;
    let mut temperature = 10.0;
    for goal in [18, 21] {
        let before: u32 = room.call("room/set-point", &goal).await?;
        println!("the goal was {before} degrees and is {goal} now");
        while (f64::from(goal) - temperature).abs() > 0.5 {
            thermometer.send(&temperature).await?;
            let power: f64 = heater.next().await.ok_or("the mesh ended")?.decode()?;
            temperature += 0.5 * power - 0.01 * (temperature - 5.0);
            println!("  heated with {power:.1}, it is {temperature:.1} degrees");
        }
    }
    room.shutdown().await;
    Ok(())
}
