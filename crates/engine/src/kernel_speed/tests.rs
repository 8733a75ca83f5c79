use super::*;
use bytes::Bytes;

fn names(filters: &[&str]) -> Vec<(&'static str, &'static str, usize)> {
    let filters: Vec<String> = filters.iter().map(|filter| filter.to_string()).collect();
    let chosen = chosen(&filters).unwrap();
    chosen.iter().map(|(format, kernel)| (format.name, kernel.name, kernel.count)).collect()
}

#[test]
fn filters_choose_kernels_and_formats_apart() {
    assert_eq!(names(&["q4_0", "scores"]).len(), 3);
    assert_eq!(names(&["turbo3", "seal", "decode"]), [("turbo3", "decode_tile", 1), ("turbo3", "seal", 1)]);
    assert!(names(&["turbo"]).iter().all(|name| name.0.starts_with("turbo") && name.1 != "product"));
    assert_eq!(names(&["tile"]).iter().filter(|name| name.2 == 256).count(), 2);
    let error = |filters: &[&str]| {
        let filters: Vec<String> = filters.iter().map(|filter| filter.to_string()).collect();
        chosen(&filters).err().unwrap().to_string()
    };
    let unknown = error(&["q4_0", "q9"]);
    assert!(unknown.contains("`q9`") && unknown.contains("accumulate") && unknown.contains("turbo3"));
    assert!(error(&["q4_k", "seal"]).contains("q4_k,seal"));
}

#[test]
fn every_format_has_kernels() {
    let all = names(&[]);
    for format in FORMATS {
        assert!(all.iter().any(|name| name.0 == format.name), "{}", format.name);
    }
}

#[test]
fn every_kernel_runs_on_every_format_and_instruction_set() {
    for format in FORMATS {
        let stream = stream(format, 512 << 10);
        for level in Level::all_available() {
            let setting = Setting { format, level, stream: stream.clone(), rows: 16 };
            for kernel in KERNELS.iter().filter(|kernel| (kernel.takes)(format)) {
                let mut work = (kernel.work)(&setting, kernel);
                // Past the end of the stream, to its beginning.
                (0..2).for_each(|_| (work.run)());
                assert!(
                    work.bytes > 0
                        && (work.multiply_adds > 0 || ["seal", "decode_tile"].contains(&kernel.name))
                );
            }
        }
    }
}

#[test]
fn nothing_multiplies_faster_than_the_limit() {
    let level = Level::detect();
    let limits = Limits::measure(&[level], 1);
    let format = torque_quant::by_name("f32").unwrap();
    let kernel = KERNELS.iter().find(|kernel| kernel.name == "scores_tile").unwrap();
    let row = Row::measure(&Setting { format, level, stream: Bytes::new(), rows: ROWS }, kernel, &limits);
    assert!(limits.read > 0.1 && row.of_limit > 0.02 && row.of_limit < 1.5, "{limits:?} {row:?}");
    assert_eq!((row.unit, row.isa), ("GFLOP/s", level.name()));
}
