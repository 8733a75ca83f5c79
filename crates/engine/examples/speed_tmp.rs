use std::time::Instant;
use torque_engine::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let types: Vec<&str> = args[1].split(',').collect();
    let depth: usize = args[2].parse().unwrap();
    let kv: Vec<&str> = args[3].split(',').collect();
    let isa = args.get(4).cloned();
    for ty in types {
        let f = quant::by_name(ty).unwrap();
        let t = Instant::now();
        let gguf = synthetic::build(&synthetic::SHAPES[0], f).unwrap();
        let engine = Engine::from_gguf(gguf, &EngineOptions { threads: Some(2), isa: isa.clone(), ..Default::default() }).unwrap();
        println!("{ty}: built in {:.1}s, active {:.1} MB", t.elapsed().as_secs_f64(), engine.active_bytes() as f64 / 1e6);
        for k in &kv {
            let mut s = engine.session(&SessionOptions { context: Some(depth + 1024), batch: 512, policy: Policy::uniform(k, k) }).unwrap();
            let prompt: Vec<u32> = (0..512).map(|i| (i * 37 % 31999) as u32).collect();
            let t = Instant::now();
            s.append(&prompt).unwrap();
            let pp = 512.0 / t.elapsed().as_secs_f64();
            while s.tokens().len() < depth { s.append(&prompt).unwrap(); }
            let n = 24;
            let mut best = f64::MAX;
            for _ in 0..3 {
                let t = Instant::now();
                for i in 0..n / 3 { s.append(&[i as u32]).unwrap(); }
                best = best.min(t.elapsed().as_secs_f64() / (n / 3) as f64);
            }
            println!("{ty} kv {k}: pp512 {pp:.1} t/s; tg @ {depth}: {:.1} t/s = {:.1} GB/s weights", 1.0 / best, engine.active_bytes() as f64 / best / 1e9);
        }
    }
}
