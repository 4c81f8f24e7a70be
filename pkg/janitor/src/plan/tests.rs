use gorego_storage::EntryId;
use proptest::prelude::*;

use super::*;
use crate::oldest::by_age;

fn entries() -> impl Strategy<Value = Vec<Candidate>> {
    // Few distinct times, so that ties are common; some entries are empty.
    let entry = (
        0_u64..40,
        0_u64..50,
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    prop::collection::vec(entry, 0..80).prop_map(|entries| {
        (0..)
            .zip(entries)
            .map(|(number, (last_use, bytes, leased, in_use))| Candidate {
                entry: EntryId(number),
                last_use,
                bytes,
                leased,
                in_use,
                partial: false,
            })
            .collect()
    })
}

fn amount() -> impl Strategy<Value = Amount> {
    (0_u64..1500, 0_u64..40).prop_map(|(bytes, files)| Amount { bytes, files })
}

fn demand() -> impl Strategy<Value = Demand> {
    (amount(), amount(), 0_u64..2000, 0_u64..1500).prop_map(
        |(soft, hard, leases_allowed, leases_breakable)| Demand {
            soft,
            hard,
            leases_allowed,
            leases_breakable,
        },
    )
}

fn plan(demand: Demand, at_most: usize, entries: &[Candidate]) -> Plan {
    let mut planner = Planner::new(demand, at_most);
    for entry in entries {
        planner.offer(*entry);
    }
    planner.finish()
}

/// A reference implementation, which sorts all entries.
fn model(demand: Demand, at_most: usize, entries: &[Candidate]) -> Plan {
    let mut sorted = entries.to_vec();
    sorted.sort_by(by_age);
    let leased: u64 = sorted.iter().filter(|c| c.leased).map(|c| c.bytes).sum();
    let mut excess = leased.saturating_sub(demand.leases_allowed);
    let (mut free, mut leased) = (Vec::new(), Vec::new());
    let mut leases_left = at_most;
    for candidate in sorted.into_iter().filter(|c| !c.in_use) {
        if candidate.leased && leases_left == 0 {
            continue;
        }
        leases_left -= usize::from(candidate.leased);
        if candidate.leased && excess == 0 {
            leased.push(candidate);
            continue;
        }
        if candidate.leased {
            excess = excess.saturating_sub(candidate.bytes);
        }
        free.push(candidate);
    }
    let mut freed = Amount::default();
    let mut result = Plan::default();
    for candidate in free {
        if freed.covers(demand.total()) {
            break;
        }
        if result.evict.len() == at_most {
            return result;
        }
        freed = freed.plus(crate::amount::of(candidate));
        result.evict.push(candidate);
    }
    let is_partial = result.evict.len() == at_most && !freed.covers(demand.total());
    let mut broken = 0;
    for candidate in leased {
        if freed.covers(demand.hard) || is_partial {
            break;
        }
        freed = freed.plus(crate::amount::of(candidate));
        broken += candidate.bytes;
        result.break_leases.push(candidate);
    }
    let in_vain = leases_left > 0 && !freed.covers(demand.hard);
    if in_vain || broken > demand.leases_breakable {
        result.break_leases.clear();
    }
    result
}

proptest! {
    #[test]
    fn the_plan_equals_that_of_the_reference_implementation(
        demand in demand(),
        at_most in prop_oneof![Just(AT_MOST), 1_usize..20],
        entries in entries(),
    ) {
        prop_assert_eq!(plan(demand, at_most, &entries), model(demand, at_most, &entries));
    }

    #[test]
    fn the_plan_does_not_depend_on_the_order_of_entries(
        demand in demand(),
        entries in entries().prop_shuffle(),
    ) {
        let mut sorted = entries.clone();
        sorted.sort_by_key(|candidate| candidate.entry);
        prop_assert_eq!(plan(demand, AT_MOST, &entries), plan(demand, AT_MOST, &sorted));
    }

    #[test]
    fn entries_in_use_are_not_evicted(demand in demand(), entries in entries()) {
        let plan = plan(demand, AT_MOST, &entries);
        prop_assert!(plan.evict.iter().chain(&plan.break_leases).all(|c| !c.in_use));
    }

    #[test]
    fn leases_are_broken_only_beyond_their_share_or_for_waiting_uploads(
        demand in demand(),
        entries in entries(),
    ) {
        let all: u64 = entries.iter().filter(|c| c.leased).map(|c| c.bytes).sum();
        let plan = plan(demand, AT_MOST, &entries);
        let broken: Vec<_> = plan.evict.iter().filter(|c| c.leased).copied().collect();
        if let Some((last, others)) = broken.split_last() {
            prop_assert!(all - total(others).bytes > demand.leases_allowed, "{:?} need not go", last);
        }
        if let Some((last, others)) = plan.break_leases.split_last() {
            let freed = total(&plan.evict).plus(total(others));
            prop_assert!(!freed.covers(demand.hard), "{:?} need not go", last);
            prop_assert!(total(&plan.break_leases).bytes <= demand.leases_breakable);
            let unleased = entries.iter().filter(|c| !c.leased && !c.in_use);
            prop_assert!(unleased.clone().all(|c| plan.evict.contains(c)));
        }
    }

    #[test]
    fn the_oldest_entries_are_evicted_and_no_more_than_needed(demand in demand(), entries in entries()) {
        let plan = plan(demand, AT_MOST, &entries);
        if let Some((youngest, others)) = plan.evict.split_last() {
            prop_assert!(!total(others).covers(demand.total()), "{:?} need not go", youngest);
            let spared = entries
                .iter()
                .filter(|c| !c.leased && !c.in_use && !plan.evict.contains(c));
            for older in spared {
                prop_assert!(by_age(youngest, older).is_lt(), "{:?} was spared", older);
            }
        }
        prop_assert!(plan.evict.is_sorted_by(|a, b| by_age(a, b).is_lt()));
        prop_assert!(plan.break_leases.is_sorted_by(|a, b| by_age(a, b).is_lt()));
    }

    #[test]
    fn the_demand_is_met_whenever_possible(demand in demand(), entries in entries()) {
        let plan = plan(demand, AT_MOST, &entries);
        let sum = |leased| {
            let idle = entries.iter().filter(|c| !c.in_use && (leased || !c.leased));
            total(&idle.copied().collect::<Vec<_>>())
        };
        let freed = total(&plan.evict);
        prop_assert!(freed.covers(demand.total().combined(sum(false), u64::min)), "the low mark could be reached");
        // The last broken lease may exceed the demand.
        let generous = demand.leases_breakable >= demand.hard.bytes + 50 && demand.hard.files == 0;
        if generous && sum(true).covers(demand.hard) {
            let freed = freed.plus(total(&plan.break_leases));
            prop_assert!(freed.covers(demand.hard), "the uploads could be served");
        }
    }
}

#[test]
fn without_a_demand_nothing_is_evicted() {
    let old = Candidate {
        entry: EntryId(1),
        last_use: 0,
        bytes: 1,
        leased: false,
        in_use: false,
        partial: false,
    };
    assert_eq!(plan(Demand::default(), AT_MOST, &[old]), Plan::default());
}
