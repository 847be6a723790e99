//! Which device is in which wave: by a hash of rollout and device, so that no device is always the canary and the
//! choice can be repeated.

use sha2::{Digest as _, Sha256};

use andon_protocol::{DeviceId, api::Wave};

pub const WAVES_MAX: usize = 16;
const SOAK_S_MAX: u32 = 30 * 24 * 3600;

/// Why a list of waves is none.
pub fn check(waves: &[Wave]) -> Result<(), String> {
    if waves.is_empty() || waves.len() > WAVES_MAX {
        return Err(format!("{} waves, allowed are 1 to {WAVES_MAX}", waves.len()));
    }
    let mut before = 0;
    for wave in waves {
        if wave.percent <= before || wave.percent > 100 {
            return Err(format!("percent {} after {before}: shares must grow, up to 100", wave.percent));
        }
        if wave.soak_s > SOAK_S_MAX {
            return Err(format!("soak_s {} is over {SOAK_S_MAX}", wave.soak_s));
        }
        before = wave.percent;
    }
    if before != 100 {
        return Err(format!("the last wave is {before} percent, it must be 100"));
    }
    Ok(())
}

/// Devices of waves 0 to `index`, at most: the share of the fleet, rounded down, but never less than one.
pub fn share(waves: &[Wave], index: usize, devices: usize) -> usize {
    waves.get(index).map_or(devices, |w| (devices * usize::from(w.percent) / 100).max(1).min(devices))
}

/// Every device with the index of its wave, the canaries first.
pub fn assign(rollout: &str, waves: &[Wave], devices: &[DeviceId]) -> Vec<(DeviceId, u32)> {
    let mut order: Vec<_> = devices
        .iter()
        .map(|device| {
            // The zero byte is in neither, so that no two pairs hash the same text.
            let hash = Sha256::new()
                .chain_update(rollout)
                .chain_update([0])
                .chain_update(device.as_str())
                .finalize();
            (hash, device.clone())
        })
        .collect();
    order.sort_unstable();
    let wave_of = |place: usize| (0..waves.len()).find(|&w| place < share(waves, w, devices.len()));
    order.into_iter().enumerate().map(|(place, (_, d))| (d, wave_of(place).unwrap_or(0) as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(shares: &[u8]) -> Vec<Wave> {
        shares.iter().map(|&percent| Wave { percent, soak_s: 1 }).collect()
    }

    #[test]
    fn shares_are_kept_and_there_is_always_a_canary() {
        // (devices, shares, devices of each wave)
        let rows: [(usize, &[u8], &[usize]); 8] = [
            (3, &[1, 100], &[1, 2]),
            (3, &[34, 100], &[1, 2]),
            (3, &[67, 100], &[2, 1]),
            (1, &[10, 50, 100], &[1, 0, 0]),
            (3, &[10, 20, 100], &[1, 0, 2]),
            (100, &[1, 10, 50, 100], &[1, 9, 40, 50]),
            (7, &[100], &[7]),
            (0, &[10, 100], &[0, 0]),
        ];
        for (n, shares, expected) in rows {
            let waves = waves(shares);
            check(&waves).unwrap();
            let devices: Vec<DeviceId> = (0..n).map(|i| format!("d{i}").parse().unwrap()).collect();
            let assigned = assign("r", &waves, &devices);
            assert_eq!(assigned, assign("r", &waves, &devices.iter().rev().cloned().collect::<Vec<_>>()));
            let counts: Vec<_> =
                (0..waves.len()).map(|w| assigned.iter().filter(|a| a.1 as usize == w).count()).collect();
            assert_eq!(counts, expected, "{n} devices, {shares:?}");
        }
    }

    #[test]
    fn another_rollout_has_another_canary() {
        let devices: Vec<DeviceId> = (0..50).map(|i| format!("d{i}").parse().unwrap()).collect();
        let waves = waves(&[2, 100]);
        let canaries: std::collections::BTreeSet<_> =
            (0..20).map(|r| assign(&format!("r{r}"), &waves, &devices)[0].0.clone()).collect();
        assert!(canaries.len() > 10, "{canaries:?}");
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for (shares, part) in [
            (&[][..], "0 waves"),
            (&[0, 100], "percent 0"),
            (&[50, 50, 100], "percent 50 after 50"),
            (&[60, 50, 100], "must grow"),
            (&[10, 50], "it must be 100"),
            (&[10, 101], "percent 101"),
        ] {
            assert!(check(&waves(shares)).unwrap_err().contains(part), "{shares:?}");
        }
        assert!(check(&[Wave { percent: 100, soak_s: u32::MAX }]).is_err());
    }
}
