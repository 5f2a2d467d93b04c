//! Topics: groups, order, reports.

use crate::cluster::{Cluster, listened_by, next};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_a_listener_of_another_peer() {
    let cluster = Cluster::new();
    let (viewer, camera) = (cluster.start("viewer").await, cluster.start("camera").await);
    let mut frames = viewer.listen("frames/*").await.unwrap();
    let left = camera.publisher("frames/left").unwrap();
    listened_by(&left, 1).await;
    let report = left.send(&("frame", 7)).await.unwrap();
    assert_eq!((report.matched, report.sent, report.dropped.len()), (1, 1, 0));
    let message = next(&mut frames).await;
    assert_eq!(message.decode::<(String, u8)>().unwrap(), ("frame".to_owned(), 7));
    assert_eq!((message.topic.as_str(), message.from_name.as_str(), message.seq), ("frames/left", "camera", 1));
}
