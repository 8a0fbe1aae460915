use super::super::conformance;
use super::*;
use crate::config::RedisInstance;
use crate::pools::redis::RedisMetrics;
use crate::telemetry::{HealthBoard, Registry};

/// A process's backend on the shared cluster, with its pool connected and its tracking current.
async fn open() -> (Arc<RedisCache>, Arc<RedisPool>) {
    let nodes = rig::shared_redis_nodes();
    let instance: RedisInstance = serde_json::from_value(serde_json::json!({"nodes": nodes})).unwrap();
    let (registry, tasks) = (Registry::default(), Tasks::default());
    let health = HealthBoard::default().add("redis.test", false);
    let pool =
        RedisPool::new("test", instance, health, &RedisMetrics::new(&registry).unwrap(), &tasks).unwrap();
    let metrics = CacheMetrics::new(&registry).unwrap();
    let l1 = Arc::new(L1::new(8 << 20, &metrics));
    let backend = RedisCache::start(Arc::clone(&pool), l1, metrics, &tasks);
    let end = Instant::now() + Duration::from_secs(10);
    while !pool.tracking_is_current() {
        assert!(Instant::now() < end, "tracking does not become current");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (backend, pool)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_backend_keeps_the_contract() {
    let (backend, _pool) = open().await;
    let (other, _other_pool) = open().await;
    conformance::run(backend, other).await;
}
