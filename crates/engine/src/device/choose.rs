//! Which device each rank takes, and why: a pure function of what was asked for, what the driver has and who this process is.

use std::{fmt, str::FromStr};

use super::driver::{Driver, NEEDED_CAPABILITY};
use crate::error::{EngineError, ErrorKind, Result};

/// What was asked for: `cpu`, `auto`, `cuda` or `cuda:K`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceRequest {
    /// Shards in host memory.
    #[default]
    Cpu,
    /// A GPU where there is one.
    Auto,
    /// A GPU: this one, or by local rank.
    Cuda(Option<u32>),
}

impl FromStr for DeviceRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => return Ok(Self::Cpu),
            "auto" => return Ok(Self::Auto),
            "cuda" => return Ok(Self::Cuda(None)),
            _ => {}
        }
        let number = text.strip_prefix("cuda:").filter(|k| k.bytes().all(|b| b.is_ascii_digit()));
        let ordinal = number.and_then(|k| k.parse().ok());
        ordinal.map(|k| Self::Cuda(Some(k))).ok_or_else(|| format!("unknown device '{text}', expected cpu, auto, cuda or cuda:K"))
    }
}

impl fmt::Display for DeviceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Auto => f.pad("auto"),
            Self::Cuda(None) => f.pad("cuda"),
            Self::Cuda(Some(k)) => f.pad(&format!("cuda:{k}")),
        }
    }
}

/// Where the shards go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceChoice {
    /// The device of each rank, by ordinal; `None` for host memory.
    pub ordinals: Option<Vec<u32>>,
    /// Why, in a sentence.
    pub reason: String,
}

/// Chooses. `probe` is asked only where a device may be taken; `local_rank` is this process's place among those of its machine, where it
/// loads one rank; `ranks` are the ranks that this process loads.
///
/// # Errors
/// [`ErrorKind::Device`] where a device was asked for by name and cannot be had, with the reason.
pub fn choose(
    request: DeviceRequest,
    probe: impl FnOnce() -> Result<Driver, String>,
    local_rank: Option<u32>,
    ranks: &[u32],
) -> Result<DeviceChoice> {
    if request == DeviceRequest::Cpu {
        return Ok(DeviceChoice { ordinals: None, reason: "cpu was asked for".into() });
    }
    let driver = match probe() {
        Ok(driver) => driver,
        Err(why) if request == DeviceRequest::Auto => return Ok(DeviceChoice { ordinals: None, reason: why }),
        Err(why) => {
            return Err(EngineError::new(
                ErrorKind::Device,
                format!("device {request} was asked for, but {why}; 'auto' goes on without one"),
            ));
        }
    };
    let count = u32::try_from(driver.devices.len()).unwrap_or(u32::MAX);
    let visible = |n: u32| if n == 1 { "1 visible device".to_owned() } else { format!("{n} visible devices") };
    let (ordinals, reason) = match (request, local_rank) {
        (DeviceRequest::Cuda(Some(k)), _) if k >= count => {
            let error = EngineError::new(ErrorKind::Device, format!("there is no device {k} (CUDA_VISIBLE_DEVICES counts)"));
            return Err(error.expected(format_args!("a number below {count}")).found(k));
        }
        (DeviceRequest::Cuda(Some(k)), _) => (vec![k; ranks.len()], format!("device {k} was asked for")),
        (_, Some(local)) => {
            (vec![local % count; ranks.len()], format!("device {}: local rank {local} of {}", local % count, visible(count)))
        }
        (_, None) => (ranks.iter().map(|r| r % count).collect(), format!("each rank modulo {}", visible(count))),
    };
    let too_old = ordinals.iter().map(|&o| &driver.devices[o as usize]).find(|d| d.capability < NEEDED_CAPABILITY);
    match too_old {
        None => Ok(DeviceChoice { ordinals: Some(ordinals), reason }),
        Some(device) => {
            let what = format!("device {} ({}) is too old", device.ordinal, device.name);
            let ((a, b), (c, d)) = (NEEDED_CAPABILITY, device.capability);
            let error = EngineError::new(ErrorKind::Device, what).expected(format_args!("compute capability {a}.{b} or newer"));
            let error = error.found(format_args!("{c}.{d}"));
            if request == DeviceRequest::Auto { Ok(DeviceChoice { ordinals: None, reason: error.to_string() }) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::driver::DeviceInfo, *};

    fn driver(devices: u32) -> Result<Driver, String> {
        with_capabilities(&vec![(9, 0); devices as usize])
    }

    fn with_capabilities(capabilities: &[(u32, u32)]) -> Result<Driver, String> {
        let device = |(ordinal, &capability)| DeviceInfo { ordinal, name: "test".into(), total_bytes: 1 << 30, capability };
        Ok(Driver { version: (12, 4), devices: (0..).zip(capabilities).map(device).collect() })
    }

    #[test]
    fn what_can_be_asked_for() {
        for text in ["cpu", "auto", "cuda", "cuda:0", "cuda:17"] {
            assert_eq!(text.parse::<DeviceRequest>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:1x", "cuda:99999999999"] {
            let message = text.parse::<DeviceRequest>().unwrap_err();
            assert!(message.contains("expected cpu, auto, cuda or cuda:K") && message.contains(text), "{message}");
        }
    }

    #[test]
    fn each_rank_takes_its_device() {
        let taken = |request: &str, devices, local, ranks: &[u32]| {
            choose(request.parse().unwrap(), || driver(devices), local, ranks).unwrap().ordinals
        };
        // One process a rank, under a launcher: the local rank decides, not the rank.
        assert_eq!(taken("cuda", 8, Some(3), &[11]), Some(vec![3]));
        // A launcher that shows each process one card.
        assert_eq!(taken("auto", 1, Some(3), &[3]), Some(vec![0]));
        // All ranks in one process.
        assert_eq!(taken("cuda", 2, None, &[0, 1, 2, 3]), Some(vec![0, 1, 0, 1]));
        assert_eq!(taken("cuda:1", 2, Some(0), &[0]), Some(vec![1]));
        assert_eq!(taken("cuda:1", 2, None, &[0, 1]), Some(vec![1, 1]));
        assert_eq!(taken("cpu", 2, None, &[0]), None);
    }

    #[test]
    fn a_device_that_the_kernels_are_not_made_for_is_not_taken() {
        let mixed = || with_capabilities(&[(9, 0), (6, 1)]);
        assert!(choose(DeviceRequest::Cuda(Some(0)), mixed, None, &[0]).is_ok());
        for request in [DeviceRequest::Cuda(Some(1)), DeviceRequest::Cuda(None)] {
            let error = choose(request, mixed, Some(1), &[1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            assert_eq!(error.to_string(), "device 1 (test) is too old: expected compute capability 7.0 or newer, found 6.1");
        }
        let auto = choose(DeviceRequest::Auto, mixed, None, &[0, 1]).unwrap();
        assert!(auto.ordinals.is_none() && auto.reason.contains("found 6.1"), "{auto:?}");
    }

    #[test]
    fn cpu_does_not_ask_the_driver() {
        choose(DeviceRequest::Cpu, || panic!("asked"), Some(0), &[0]).unwrap();
    }

    #[test]
    fn auto_says_why_not_and_cuda_fails_with_the_same_reason() {
        let none = || Err("there is no CUDA driver".to_owned());
        let auto = choose(DeviceRequest::Auto, none, None, &[0]).unwrap();
        assert_eq!((auto.ordinals, auto.reason.as_str()), (None, "there is no CUDA driver"));
        let error = choose(DeviceRequest::Cuda(None), none, None, &[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert_eq!(error.to_string(), "device cuda was asked for, but there is no CUDA driver; 'auto' goes on without one");
        let error = choose(DeviceRequest::Cuda(Some(2)), || driver(2), None, &[0]).unwrap_err();
        assert!(error.to_string().contains("no device 2") && error.to_string().contains("below 2"), "{error}");
    }
}
