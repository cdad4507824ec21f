//! What every engine behind a seam keeps to, as plain functions over the seam, and one list of them for each seam: an
//! engine's test says how it is opened, and is held to all of them.

pub mod answers;
pub mod batches;
pub mod ledger;
pub mod limiter;
pub mod process;
pub mod queue;

/// A test for every promise of a queue. `$open` is an async function that opens a new queue, and returns it with
/// whatever has to live as long.
#[macro_export]
macro_rules! queue_conforms {
    ($open:path) => {
        $crate::queue_conforms!(@each $open,
            a_completed_job_leaves_its_results_and_does_not_come_back,
            a_retry_spends_an_attempt_and_a_release_does_not,
            a_retry_publishes_what_is_answered,
            a_dead_letter_is_a_result_too,
            a_dropped_delivery_comes_back,
            a_stopped_intake_gives_back_what_it_had_not_lent,
            no_priority_starves_another,
            a_new_batch_gets_the_emptiest_lane,
            a_durable_subscriber_goes_on_where_it_committed,
            the_log_replays_and_filters,
            a_dead_letter_keeps_the_job_and_says_why,
            looking_through_the_dead_letters_leaves_them_in_their_order,
            a_replayed_dead_letter_is_a_job_again,
            a_purged_dead_letter_is_gone_and_the_others_stay,
            a_look_sees_every_letter_while_others_are_ended,
            a_look_ends_with_the_letters_that_it_began_with,
            jobs_that_are_set_aside_come_back_when_their_batch_goes_on,
            a_batch_can_be_paused_again,
        );
    };
    (@each $open:path, $($promise:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            let (queue, _keep) = $open().await;
            $crate::conformance::queue::$promise(queue.clone()).await;
            pixfleet_shared::queue::Queue::close(&*queue).await;
        }
    )*};
}

/// A test for every promise of a limiter. `$open` is an async function that opens four clients of one limiter, as four
/// processes have them, and returns them with whatever has to live as long.
#[macro_export]
macro_rules! limiter_conforms {
    ($open:path) => {
        $crate::limiter_conforms!(@each $open,
            no_window_holds_more_than_its_calls(fleet),
            a_call_takes_its_models_from_a_limit_on_models(fleet),
            slots_come_in_order_and_soon(client),
            what_is_booked_after_a_late_call_makes_room(fleet),
            a_stack_without_limits_lets_every_call_go(client),
            a_hold_off_reaches_every_client(fleet),
            a_shorter_hold_off_never_ends_a_longer_one(fleet),
            work_goes_on_when_a_hold_off_is_over(client),
            stacks_are_independent(client),
            what_can_never_be_granted_is_refused(client),
            a_quota_is_spent_by_all_together_and_no_further(fleet),
            a_call_takes_the_money_and_the_megabytes_that_it_weighs(client),
            a_pause_holds_for_everybody_until_it_is_resumed(fleet),
            changed_numbers_bind_everybody_at_once(fleet),
            after_a_hold_off_one_call_goes_ahead(fleet),
            calls_in_flight_are_shared_and_never_too_many(fleet),
        );
    };
    (@each $open:path, $($promise:ident($clients:ident)),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let (limiters, _keep) = $open().await;
            let fleet: Vec<&dyn pixfleet_shared::limiter::RateLimiter> = limiters.iter().map(|limiter| &**limiter).collect();
            $crate::limiter_conforms!(@run $promise, $clients, fleet);
        }
    )*};
    (@run $promise:ident, fleet, $fleet:ident) => { $crate::conformance::limiter::$promise("test", &$fleet).await };
    (@run $promise:ident, client, $fleet:ident) => { $crate::conformance::limiter::$promise("test", $fleet[0]).await };
}

/// A test for every promise of a ledger. `$open` is an async function that opens three processes of one fleet, of which
/// nothing is known yet. After `in turn`: no tests, but a block that keeps all of them, one after the other.
#[macro_export]
macro_rules! ledger_conforms {
    ($($open:tt)*) => {
        $crate::fleet_conforms!(ledger, [$($open)*],
            a_settled_job_is_known_to_every_process,
            a_turn_may_be_settled_twice_and_is_counted_once,
            a_question_settles_nothing,
            a_call_under_way_belongs_to_whoever_makes_it,
            an_answer_that_was_paid_for_is_found_by_everybody,
            an_answer_outlives_the_process_that_paid_for_it,
            a_call_that_was_free_or_did_not_leave_clears_its_turn,
            nobody_takes_back_the_call_of_another_one,
            a_call_whose_maker_died_is_unanswered,
            a_call_whose_time_is_over_is_unanswered,
            a_call_that_is_lost_is_waited_for_by_nobody,
            lost_calls_are_listed_and_may_be_resolved,
            a_later_turn_makes_copies_of_earlier_ones_over,
            who_died_with_a_job_in_hand_is_counted,
            a_dead_letter_is_opened_once,
            the_bill_counts_each_answered_call_once,
            whatever_is_said_in_whatever_order_keeps_the_promises,
            of_many_who_ask_at_once_one_may_call,
            a_day_of_which_nothing_is_kept_is_empty,
        );
    };
}

/// A test for every promise of the answers that are kept. `$open` as for [`ledger_conforms`].
#[macro_export]
macro_rules! answers_conform {
    ($($open:tt)*) => {
        $crate::fleet_conforms!(answers, [$($open)*],
            who_finds_nothing_has_the_claim_and_others_wait_for_the_answer,
            a_claim_that_is_given_up_is_the_next_ones,
            a_claim_ends_with_its_time,
            a_claim_ends_with_its_process,
            an_answer_outlives_the_process_that_kept_it,
            an_answer_goes_when_its_time_is_over,
            nothing_is_claimed_behind_a_key_that_is_awaited,
            of_many_who_ask_at_once_one_has_the_claim,
        );
    };
}

/// A test for every promise of what is known of batches. `$open` as for [`ledger_conforms`].
#[macro_export]
macro_rules! batches_conform {
    ($($open:tt)*) => {
        $crate::fleet_conforms!(batches, [$($open)*],
            what_a_producer_says_is_kept_and_never_shrinks,
            results_are_counted_by_what_they_are,
            a_batch_is_complete_with_its_last_result,
            a_batch_whose_results_are_faster_than_its_producer_is_complete_with_its_word,
            a_dead_letter_that_is_opened_makes_its_batch_incomplete,
            a_hold_reaches_every_process,
            what_is_cancelled_stays_so,
            batches_are_listed_the_youngest_first,
        );
    };
}

/// A test for each of these promises of a module here; see [`ledger_conforms`].
#[macro_export]
macro_rules! fleet_conforms {
    ($seam:ident, [in turn $open:expr], $($promise:ident),* $(,)?) => {$(
        eprintln!("{}: {}", stringify!($seam), stringify!($promise));
        let name = $crate::servers::fresh_name(stringify!($seam));
        $crate::conformance::$seam::$promise(&name, $open.await).await;
    )*};
    ($seam:ident, [$open:path], $($promise:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let name = $crate::servers::fresh_name(stringify!($seam));
            $crate::conformance::$seam::$promise(&name, $open().await).await;
        }
    )*};
}
