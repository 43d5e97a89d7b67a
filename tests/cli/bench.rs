//! `lapidary bench`: what it measures, and what it says of it.

use crate::command::lapidary;

#[test]
fn bench_measures_what_it_says() {
    let args = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--depth", "3", "--repeat", "1"];
    let found = lapidary(&[&args[..], &["--kernels", "--json"]].concat()).json();
    for ceiling in ["read_gbps", "matrix_gflops"] {
        assert!(found["machine"][ceiling].as_f64().unwrap() > 0.0);
    }
    let results = found["results"].as_array().unwrap();
    let phases: Vec<_> = results.iter().map(|r| (r["phase"].as_str(), r["tokens"].as_u64())).collect();
    assert_eq!(phases, [(Some("prefill"), Some(8)), (Some("decode"), Some(4))]);
    for result in results {
        // The built-in model: two operations a weight and more, and every layer's weights read once a call.
        assert!(result["flops_per_token"].as_f64().unwrap() > 2.0 * 4_982_688.0 * 0.99);
        assert!(result["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert!(!result["kernels"].as_array().unwrap().is_empty());
    }
    assert!(results[1]["bytes_per_token"].as_f64().unwrap() > 2.0 * 4_982_688.0);
}

/// Of N sequences a step reads every weight once, and N times the keys and values.
#[test]
fn bench_decodes_several_sequences_at_once() {
    let args = [
        "bench",
        "--context",
        "512",
        "--prompt-tokens",
        "1",
        "--gen-tokens",
        "2",
        "--depth",
        "30",
        "--repeat",
        "1",
    ];
    let found = lapidary(&[&args[..], &["--sequences", "1,3,40", "--kernels", "--json"]].concat()).json();
    let decode: Vec<_> = found["results"].as_array().unwrap().iter().skip(1).collect();
    let figure = |at: usize, name: &str| decode[at][name].as_f64().unwrap();
    assert_eq!([0, 1, 2].map(|at| figure(at, "sequences")), [1.0, 3.0, 40.0]);
    for at in 0..3 {
        assert!(figure(at, "tokens_per_s") > 0.0);
        assert!((figure(at, "flops_per_token") / figure(0, "flops_per_token") - 1.0).abs() < 0.01);
    }
    // Keys and values are a KiB a position and layer; 40 rows are two calls.
    let (one, three, forty) =
        (figure(0, "bytes_per_token"), figure(1, "bytes_per_token"), figure(2, "bytes_per_token"));
    assert!(three > one / 3.0 && three < one / 2.0, "{three} of {one}");
    assert!(forty > one / 20.0 && forty < one / 10.0, "{forty} of {one}");
    for result in decode {
        assert!(result["kernels"].as_array().unwrap().iter().all(|k| k["ms"].as_f64().unwrap() > 0.0));
    }
}
