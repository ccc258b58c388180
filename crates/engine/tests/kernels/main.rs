//! The device's cast kernels without a device: their source, compiled for the host, and their PTX, interpreted, against the CPU's scalar
//! reference; their PTX against their source.

mod ptx;

#[path = "../../../cast/tests/cast/inputs.rs"]
mod inputs;
#[path = "../../../../tests/support/runner.rs"]
mod runner;

use std::{
    io::Write,
    mem::MaybeUninit,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use runner::{skip, tests};
use sha2::{Digest, Sha256};
use shardwright_cast::{SimdLevel, caster_at};
use shardwright_core::DType;

tests! {
    every_kernel_gives_the_references_bits_on_all_inputs_of_small_dtypes_and_all_boundaries_of_large_ones,
    a_kernels_tiles_may_lie_anywhere_and_end_anywhere,
    the_ptx_gives_the_references_bits_on_all_inputs_of_small_dtypes_and_on_many_of_large_ones,
    a_defect_in_the_ptx_shows,
    the_ptxs_tiles_may_lie_anywhere_and_end_anywhere,
    the_ptx_names_the_source_that_it_was_made_from,
    the_ptx_is_what_the_source_compiles_to,
    the_ptx_becomes_machine_code_for_every_generation_of_cards,
}

const DTYPES: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
const GUARD: [u8; 32] = [0xA5; 32];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/kernels/cast.cu")
}

fn size(dtype: DType) -> usize {
    usize::try_from(dtype.bits() / 8).unwrap()
}

/// Every cast as (from, to, kernel), and the copy.
fn kernels() -> impl Iterator<Item = (DType, DType, String)> {
    let name = |d: DType| d.safetensors_name().to_ascii_lowercase();
    let casts = DTYPES
        .into_iter()
        .flat_map(move |a| DTYPES.into_iter().filter(move |&b| a != b).map(move |b| (a, b, format!("cast_{}_{}", name(a), name(b)))));
    std::iter::once((DType::U8, DType::U8, "copy".to_owned())).chain(casts)
}

pub(crate) fn cast_at(level: SimdLevel, from: DType, to: DType, src: &[u8]) -> Vec<u8> {
    let mut out = vec![MaybeUninit::new(0); src.len() / size(from) * size(to)];
    caster_at(level, from, to).unwrap()(src, &mut out);
    // SAFETY: it was made of initialised bytes, and casts write no others.
    out.into_iter().map(|b| unsafe { b.assume_init() }).collect()
}

/// Compiles the kernels for the host under the sanitizers where there are any; says why where that cannot be.
fn compile(dir: &Path) -> Result<PathBuf, String> {
    let program = dir.join("host");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut last = String::new();
    for sanitize in [&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"][..], &[]] {
        let built = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-unknown-pragmas", "-rdynamic"])
            .args(sanitize)
            .arg(format!("-DCAST_CU=\"{}\"", source().display()))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/host.cpp"))
            .arg("-o")
            .arg(&program)
            .arg("-ldl")
            .output()
            .map_err(|e| format!("no C++ compiler '{compiler}': {e}"))?;
        if built.status.success() {
            return Ok(program);
        }
        last = String::from_utf8_lossy(&built.stderr).into_owned();
    }
    panic!("{compiler} does not compile the kernels:\n{last}");
}

/// A way to run a kernel over requests. The answers: each destination, with a guard before and behind it.
trait Runner {
    fn run(&self, kernel: &str, from: DType, to: DType, requests: &[Request<'_>]) -> Vec<u8>;
}

/// The source, compiled for the host.
struct Compiled {
    program: PathBuf,
}

/// The PTX that is shipped.
struct Interpreted {
    ptx: String,
}

/// What one run of a kernel is asked: how far source and destination lie behind a multiple of 16, and the source.
struct Request<'a> {
    src_skew: usize,
    dst_skew: usize,
    src: &'a [u8],
}

impl Runner for Compiled {
    fn run(&self, kernel: &str, from: DType, to: DType, requests: &[Request<'_>]) -> Vec<u8> {
        let mut input = tempfile::tempfile().unwrap();
        let mut writer = std::io::BufWriter::new(&mut input);
        for r in requests {
            for number in [r.src_skew, r.dst_skew, r.src.len() / size(from)] {
                writer.write_all(&(number as u64).to_le_bytes()).unwrap();
            }
            writer.write_all(r.src).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        std::io::Seek::rewind(&mut input).unwrap();
        let command = [kernel.to_owned(), size(from).to_string(), size(to).to_string()];
        let answer = Command::new(&self.program).args(&command).stdin(Stdio::from(input)).stderr(Stdio::inherit()).output().unwrap();
        assert!(answer.status.success(), "{kernel}: {}", answer.status);
        answer.stdout
    }
}

impl Runner for Interpreted {
    fn run(&self, kernel: &str, from: DType, to: DType, requests: &[Request<'_>]) -> Vec<u8> {
        let kernel = ptx::Kernel::parse(&self.ptx, kernel);
        let mut answers = Vec::new();
        for r in requests {
            let count = r.src.len() / size(from);
            let mut block = vec![0; r.src_skew];
            block.extend(r.src);
            block.resize(block.len().next_multiple_of(16), 0); // as the kernels are promised
            let first = GUARD.len() + r.dst_skew;
            let mut out = vec![0xA5; first + count * size(to) + GUARD.len()];
            let cuts = [0, count / 3, (count / 3 + count / 2).min(count), count]; // a tile's own place counts
            let tiles = cuts.windows(2).map(|cut| {
                [(r.src_skew + cut[0] * size(from)) as u64, ptx::DESTINATION + (first + cut[0] * size(to)) as u64, (cut[1] - cut[0]) as u64]
            });
            let tiles: Vec<u8> = tiles.flatten().flat_map(u64::to_le_bytes).collect();
            kernel.launch(3, &mut ptx::Memory { block: &block, tiles: &tiles, destination: &mut out });
            answers.extend(&out[r.dst_skew..]);
        }
        answers
    }
}

/// Asserts that the kernel gives the reference's bits for each request and writes nothing beside them.
fn check(runner: &dyn Runner, from: DType, to: DType, kernel: &str, requests: &[Request<'_>]) {
    let answer = runner.run(kernel, from, to, requests);
    let mut rest = &answer[..];
    for r in requests {
        let want = cast_at(SimdLevel::Scalar, from, to, r.src);
        let (got, left) = rest.split_at(want.len() + 2 * GUARD.len());
        let (before, got) = got.split_at(GUARD.len());
        let (got, behind) = got.split_at(want.len());
        let place = format!("{kernel}, {} elements at +{} to +{}", r.src.len() / size(from), r.src_skew, r.dst_skew);
        if got != want {
            let (a, b) = (size(from), size(to));
            let i = (0..want.len() / b).find(|i| got[i * b..][..b] != want[i * b..][..b]).unwrap();
            let at = |bytes: &[u8], size: usize| format!("{:02x?}", &bytes[i * size..][..size]);
            panic!("{place}: element {i}, bytes {}, became {}, expected {}", at(r.src, a), at(got, b), at(&want, b));
        }
        assert!(before == GUARD && behind == GUARD, "{place}: wrote outside");
        rest = left;
    }
    assert!(rest.is_empty(), "{kernel}");
}

/// The source compiled; the test is skipped where it cannot be.
fn compiled(dir: &Path) -> Compiled {
    Compiled { program: compile(dir).unwrap_or_else(|why| skip(why)) }
}

fn interpreted() -> Interpreted {
    Interpreted { ptx: std::fs::read_to_string(source().with_extension("ptx")).unwrap() }
}

/// Any place, and ends one in so many.
fn anywhere(runner: &dyn Runner, step: usize) {
    for (from, to, kernel) in kernels() {
        let src = inputs::inputs(from);
        let mut requests = Vec::new();
        for count in (0..70).step_by(step).chain([127, 257]).filter(|n| n * size(from) <= src.len()) {
            for (src_skew, dst_skew) in [(0, 0), (8, 0), (0, 8), (4, 12), (2, 6), (1, 1), (7, 0), (0, 3), (15, 14), (9, 8)] {
                requests.push(Request {
                    src_skew,
                    dst_skew,
                    src: &src[src.len() / 2 / 8 * 8..][..(count * size(from)).min(src.len() / 2)],
                });
            }
        }
        check(runner, from, to, &kernel, &requests);
    }
}

fn every_kernel_gives_the_references_bits_on_all_inputs_of_small_dtypes_and_all_boundaries_of_large_ones() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = compiled(dir.path());
    for (from, to, kernel) in kernels() {
        check(&compiled, from, to, &kernel, &[Request { src_skew: 0, dst_skew: 0, src: &inputs::inputs(from) }]);
    }
}

fn a_kernels_tiles_may_lie_anywhere_and_end_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = compiled(dir.path());
    anywhere(&compiled, 1);
}

fn the_ptx_gives_the_references_bits_on_all_inputs_of_small_dtypes_and_on_many_of_large_ones() {
    let interpreted = interpreted();
    for (from, to, kernel) in kernels() {
        // Interpreting is slow: of the wide dtypes' inputs, whose boundaries stand in rows of 65,536, one in so many.
        let step = match from {
            DType::F64 => 331,
            DType::F32 => 41,
            _ => 1,
        };
        let src: Vec<u8> = inputs::inputs(from).chunks_exact(size(from)).step_by(step).flatten().copied().collect();
        check(&interpreted, from, to, &kernel, &[Request { src_skew: 0, dst_skew: 0, src: &src }]);
    }
}

/// A tie that is rounded up, in one element of eight.
fn a_defect_in_the_ptx_shows() {
    let Interpreted { ptx } = interpreted();
    let at = ptx.find(".visible .entry cast_f32_bf16(").unwrap();
    let ptx = ptx[..at].to_owned() + &ptx[at..].replacen(", 32767;", ", 32768;", 1);
    let checked = std::panic::catch_unwind(|| {
        check(
            &Interpreted { ptx },
            DType::F32,
            DType::BF16,
            "cast_f32_bf16",
            &[Request { src_skew: 0, dst_skew: 0, src: &inputs::inputs(DType::F32)[3 << 18..][..1 << 16] }],
        );
    });
    let panic = checked.expect_err("the defect does not show");
    assert!(panic.downcast_ref::<String>().is_some_and(|said| said.contains("cast_f32_bf16")));
}

fn the_ptxs_tiles_may_lie_anywhere_and_end_anywhere() {
    anywhere(&interpreted(), 3);
}

fn the_ptx_names_the_source_that_it_was_made_from() {
    let ptx = std::fs::read_to_string(source().with_extension("ptx")).unwrap();
    let digest: String = Sha256::digest(std::fs::read(source()).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert!(
        ptx.contains(&format!("// sha256 of cast.cu: {digest}\n")),
        "run scripts/make-ptx.py: cast.cu has changed since cast.ptx was made"
    );
    for (_, _, kernel) in kernels() {
        assert_eq!(ptx.matches(&format!(".visible .entry {kernel}(")).count(), 1, "{kernel}");
    }
    assert!(ptx.contains("ld.global.v2.u64") && ptx.contains("st.v2.u64"), "no 16-byte accesses");
}

fn the_ptx_is_what_the_source_compiles_to() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/make-ptx.py");
    match Command::new("python3").arg(script).arg("--check").output() {
        Ok(out) if out.status.success() => {}
        Ok(out) if out.status.code() == Some(77) => {
            skip(String::from_utf8_lossy(&out.stderr));
        }
        Ok(out) => panic!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        Err(e) => skip(format!("no python3: {e}")),
    }
}

/// One of NVIDIA's programs, as `scripts/cuda-tools.sh` puts it; the test is skipped without it.
fn tool(name: &str) -> PathBuf {
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cuda-tools/lib");
    let pythons = std::fs::read_dir(&site).into_iter().flatten().flatten().map(|d| d.path().join("site-packages/nvidia"));
    let programs = pythons.flat_map(|nvidia| ["cuda_nvcc/bin", "cu13/bin"].map(|bin| nvidia.join(bin).join(name)));
    let found = programs.into_iter().find(|p| p.is_file());
    found.unwrap_or_else(|| skip(format!("no {name} in target/cuda-tools; scripts/cuda-tools.sh gets it")))
}

fn output(program: &Path, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{} {arguments:?}: {text}", program.display());
    text
}

/// NVIDIA's own assembler takes it for every generation of cards since Volta, keeps every value in a register, and makes accesses of 16
/// bytes of what the source asks for.
fn the_ptx_becomes_machine_code_for_every_generation_of_cards() {
    let (ptxas, nvdisasm) = (tool("ptxas"), tool("nvdisasm"));
    let (dir, ptx) = (tempfile::tempdir().unwrap(), source().with_extension("ptx"));
    for capability in ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
        let code = dir.path().join(capability);
        let log = output(&ptxas, &["-v", "-arch", capability, ptx.to_str().unwrap(), "-o", code.to_str().unwrap()]);
        let spills: Vec<_> = log.lines().filter(|l| l.contains("spill stores")).collect();
        assert_eq!(spills.len(), kernels().count(), "{capability}: {log}");
        assert!(spills.iter().all(|l| l.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads")), "{capability}: {log}");
        if capability == "sm_70" {
            continue; // this nvdisasm reads Turing and newer
        }
        let text = output(&nvdisasm, &[code.to_str().unwrap()]);
        for (_, _, kernel) in kernels() {
            let start = text.find(&format!("\n.text.{kernel}:")).unwrap_or_else(|| panic!("{capability}: no {kernel}"));
            let body = &text[start..start + text[start..].find("\n\t.section").unwrap_or(text.len() - start)];
            assert!(body.contains("LDG.E.128") && body.contains("ST.E.128"), "{capability}: {kernel} has no accesses of 16 bytes");
        }
    }
}
