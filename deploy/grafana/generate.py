"""Writes the dashboards: `python deploy/grafana/generate.py [FOLDER]`. The JSON beside it is checked in.

Counters are shown as rates over `$__rate_interval`, which follows the scrape interval.
"""

import json
import pathlib
import sys
from typing import Any

from panels import (
    SELECT,
    Panel,
    chosen,
    dashboard,
    graph,
    per_second,
    quantile,
    stat,
    table,
    timeline,
    variable,
)

DASHBOARDS = pathlib.Path(__file__).parent / "dashboards"

SCORE = variable("score", "Score", f"label_values({chosen('adaptd_blend_score')}, score)")
UP_WORDS = [{"type": "value", "options": {"0": {"text": "down"}, "1": {"text": "up"}}}]
GOOD_AT_1 = [(None, "red"), (1, "green")]
BAD_ABOVE_0 = [(None, "green"), (1, "red")]
AS_WORDS = {"0": "no", "1": "yes"}
FIRING = f'count(ALERTS{{{SELECT}, alertname=~"Adaptd.+", alertstate="firing"}}) or vector(0)'


def weights(width: int = 12) -> Panel:
    return graph(
        "Weights",
        "Each learner's share in the blend; they sum to 1.",
        "percentunit",
        [(chosen("adaptd_learner_weight"), "{{learner}}")],
        width,
        stacked=True,
        share=True,
    )


def champion() -> Panel:
    return timeline(
        "Champion",
        "The learner that is trusted most, over time.",
        [(chosen("adaptd_learner_champion"), "{{learner}}")],
        AS_WORDS,
    )


def overview() -> dict[str, Any]:
    return dashboard(
        "adaptd-overview",
        "adaptd / Overview",
        "Is it well, and how good are its predictions?",
        [
            stat(
                "State",
                "Whether Prometheus reaches the metrics page.",
                "none",
                f"min({chosen('up')})",
                mappings=UP_WORDS,
                steps=GOOD_AT_1,
            ),
            stat(
                "Alerts",
                "Alerts that fire now; docs/operations.md says what to do.",
                "short",
                FIRING,
                steps=BAD_ABOVE_0,
            ),
            stat("Rows", "Records taken in a second.", "rowsps", f"sum({per_second('adaptd_rows_total')})"),
            stat(
                "Lag",
                "Bytes that wait in the source; -1 when that cannot be known.",
                "bytes",
                f"max({chosen('adaptd_source_lag_bytes')})",
            ),
            stat(
                "Champion",
                "The learner that is trusted most.",
                "none",
                f"{chosen('adaptd_learner_champion')} == 1",
                "{{learner}}",
                text="name",
            ),
            stat(
                "Drifts",
                "Concept drifts that were detected in the time range.",
                "short",
                f"sum(increase({chosen('adaptd_drifts_total')}[$__range]))",
            ),
            graph(
                "Score of the blend",
                "Fading score over the newest labelled rows, each predicted before it was learned.",
                "short",
                [(chosen("adaptd_blend_score", 'score=~"$score"'), "{{score}}")],
            ),
            graph(
                "Loss: blend and best learner",
                "Fading loss. The blend should be at or below the best learner.",
                "short",
                [
                    (chosen("adaptd_blend_loss"), "blend"),
                    (f"min by (instance) ({chosen('adaptd_learner_loss')} >= -Inf)", "best learner"),
                ],
            ),
            weights(),
            graph(
                "Rows",
                "Records taken in, rows predicted, rows learned, records rejected, a second.",
                "rowsps",
                [
                    (f"sum({per_second('adaptd_rows_total')})", "taken in"),
                    (f"sum({per_second('adaptd_predictions_total')})", "predicted"),
                    (f"sum({per_second('adaptd_labels_total')})", "learned"),
                    (f"sum({per_second('adaptd_rejects_total')})", "rejected"),
                ],
                floor=True,
            ),
            graph(
                "Lag",
                "Bytes that wait in the source.",
                "bytes",
                [(chosen("adaptd_source_lag_bytes"), "{{instance}}")],
            ),
            graph(
                "Rows that wait for their label",
                "The label buffer; what does not fit expires unlearned.",
                "short",
                [(chosen("adaptd_label_buffer_rows"), "{{instance}}")],
                floor=True,
            ),
            champion(),
        ],
        SCORE,
    )


def learners() -> dict[str, Any]:
    def each(title: str, description: str, unit: str, metric: str, **look: Any) -> Panel:
        return graph(title, description, unit, [(chosen(metric), "{{learner}}")], **look)

    return dashboard(
        "adaptd-learners",
        "adaptd / Learners and rates",
        "Every learner: loss, rate, steps, size.",
        [
            each(
                "Loss",
                "Fading loss of each learner: log loss, or the mean absolute error.",
                "short",
                "adaptd_learner_loss",
            ),
            graph(
                "Score",
                "Fading score of each learner.",
                "short",
                [(chosen("adaptd_learner_score", 'score=~"$score"'), "{{learner}} {{score}}")],
            ),
            weights(),
            graph(
                "Blend against the best learner",
                "Loss of the blend less that of the best learner then; below 0 the blend earns its keep.",
                "short",
                [
                    (
                        f"{chosen('adaptd_blend_loss')} - on (job, instance) min by (job, instance) "
                        f"({chosen('adaptd_learner_loss')} >= -Inf)",
                        "{{instance}}",
                    )
                ],
            ),
            each(
                "Learning rate",
                "The rate in force, rate scale included; only gradient learners have one.",
                "short",
                "adaptd_learner_learning_rate",
                logarithmic=True,
            ),
            each(
                "Rate scale",
                "The controller's factor on the learning rate: above 1 after a drift, decaying.",
                "short",
                "adaptd_learner_rate_scale",
                floor=True,
            ),
            each(
                "Gradient norm",
                "Fading mean length of a loss gradient; it rises when the model no longer fits.",
                "short",
                "adaptd_learner_gradient_norm",
                logarithmic=True,
            ),
            each(
                "Step norm",
                "Fading mean length of a gradient step: how fast the model really moves.",
                "short",
                "adaptd_learner_step_norm",
                logarithmic=True,
            ),
            each(
                "State",
                "Bytes of each learner's state; beyond pool.learner_bytes_max it is set aside.",
                "bytes",
                "adaptd_learner_state_bytes",
                floor=True,
            ),
            table(
                "Learners now",
                "The newest loss of each learner.",
                "short",
                chosen("adaptd_learner_loss"),
                ["__name__", "job"],
            ),
            champion(),
            timeline(
                "Set aside",
                "Learners that failed and are not used any more.",
                [(chosen("adaptd_learner_set_aside"), "{{learner}}")],
                AS_WORDS,
                12,
            ),
            timeline(
                "Frozen",
                "Learners that predict and do not learn.",
                [(chosen("adaptd_learner_frozen"), "{{learner}}")],
                AS_WORDS,
                12,
            ),
        ],
        SCORE,
    )


def drift() -> dict[str, Any]:
    return dashboard(
        "adaptd-drift",
        "adaptd / Drift and decisions",
        "What changed, and what was done about it.",
        [
            graph(
                "Loss of the blend and its past",
                "Fading loss, and its mean over the day before. Marks: drifts, champions.",
                "short",
                [
                    (chosen("adaptd_blend_loss"), "now"),
                    (chosen("instance:adaptd_blend_loss:mean1d"), "mean of a day"),
                ],
                24,
            ),
            graph(
                "Warnings, drifts, switches",
                "How often the detector warned, called drift, and the champion changed.",
                "short",
                [
                    (f"sum(increase({chosen(f'adaptd_{what}_total')}[$__rate_interval]))", what)
                    for what in ("warnings", "drifts", "switches")
                ],
                bars=True,
                floor=True,
            ),
            graph(
                "Largest rate scale",
                "After a drift learning rates are raised, and return by halves.",
                "short",
                [(f"max by (instance) ({chosen('adaptd_learner_rate_scale')})", "{{instance}}")],
                floor=True,
            ),
            champion(),
            weights(),
            graph(
                "Labelled rows between drifts",
                "Rows learned in the time range for each drift; nothing without a drift.",
                "short",
                [
                    (
                        f"sum by (instance) (increase({chosen('adaptd_labels_total')}[$__range]))"
                        " / clamp_min(sum by (instance) "
                        f"(increase({chosen('adaptd_drifts_total')}[$__range])), 1)",
                        "{{instance}}",
                    )
                ],
                floor=True,
            ),
            table(
                "Decisions",
                "Events in the time range by name; the journal has each with its reason.",
                "short",
                f"sum by (instance, event) (increase({chosen('adaptd_events_total')}[$__range])) > 0",
                [],
            ),
            graph(
                "Label delay",
                "Predictions made between a row's prediction and its label.",
                "short",
                [
                    (
                        quantile(q, "adaptd_label_delay_rows", "le"),
                        name,
                    )
                    for q, name in ((0.5, "median"), (0.99, "99 %"))
                ],
                floor=True,
            ),
            graph(
                "Features and classes",
                "How wide the rows are; growth is a decision too.",
                "short",
                [(chosen("adaptd_features"), "features"), (chosen("adaptd_classes"), "classes")],
                floor=True,
            ),
        ],
    )


def service() -> dict[str, Any]:
    return dashboard(
        "adaptd-service",
        "adaptd / Service",
        "The process, its input and output, its state on disk.",
        [
            stat(
                "State",
                "Whether Prometheus reaches the metrics page.",
                "none",
                f"min({chosen('up')})",
                mappings=UP_WORDS,
                steps=GOOD_AT_1,
            ),
            stat(
                "Uptime",
                "Time since the process was started.",
                "s",
                f"time() - max({chosen('process_start_time_seconds')})",
            ),
            stat(
                "Last turn",
                "Time since the loop turned; it publishes twice a second while it does.",
                "s",
                f"max({chosen('adaptd_turn_age_seconds')})",
                steps=[(None, "green"), (60, "red")],
            ),
            stat(
                "Checkpoint age",
                "Time since the last checkpoint was saved or loaded.",
                "s",
                f"max({chosen('adaptd_checkpoint_age_seconds')})",
                steps=[(None, "green"), (900, "red")],
            ),
            stat(
                "Checkpoint failures",
                "Checkpoints in the time range that could not be saved.",
                "short",
                f"sum(increase({chosen('adaptd_checkpoint_failures_total')}[$__range]))",
                steps=BAD_ABOVE_0,
            ),
            stat("Version", "What runs.", "none", chosen("adaptd_build_info"), "{{version}}", text="name"),
            graph(
                "Where the time goes",
                "Share of each stage of the loop; poll waits when nothing comes.",
                "percentunit",
                [(f"sum by (stage) ({per_second('adaptd_stage_duration_seconds_sum')})", "{{stage}}")],
                stacked=True,
                floor=True,
            ),
            graph(
                "Slowest turns",
                "99 % of the turns of the loop spent at most this in a stage.",
                "s",
                [
                    (
                        quantile(0.99, "adaptd_stage_duration_seconds", "stage, le"),
                        "{{stage}}",
                    )
                ],
                logarithmic=True,
            ),
            graph(
                "Processor",
                "Seconds of processor time a second.",
                "short",
                [(per_second("process_cpu_seconds_total"), "{{instance}}")],
                floor=True,
            ),
            graph(
                "Memory",
                "Resident memory, and of it the states of the learners.",
                "bytes",
                [
                    (chosen("process_resident_memory_bytes"), "resident"),
                    (f"sum by (instance) ({chosen('adaptd_learner_state_bytes')})", "learners"),
                    (chosen("adaptd_label_buffer_bytes"), "label buffer"),
                ],
                floor=True,
            ),
            graph(
                "Rejects",
                "Records that could not be used, by reason; the dead letters hold them.",
                "rowsps",
                [(f"sum by (reason) ({per_second('adaptd_rejects_total')})", "{{reason}}")],
                floor=True,
            ),
            graph(
                "Missing values",
                "Values taken as missing, by reason.",
                "short",
                [(f"sum by (reason) ({per_second('adaptd_values_missing_total')})", "{{reason}}")],
                floor=True,
            ),
            graph(
                "Label buffer",
                "Rows that wait for their label.",
                "short",
                [(chosen("adaptd_label_buffer_rows"), "{{instance}}")],
                floor=True,
            ),
            graph(
                "Labels lost",
                "Rows whose label did not come, by the bound that they hit; labels that found no row.",
                "rowsps",
                [
                    (f"sum by (reason) ({per_second('adaptd_labels_expired_total')})", "expired: {{reason}}"),
                    (f"sum({per_second('adaptd_labels_unknown_total')})", "unknown id"),
                    (f"sum({per_second('adaptd_duplicate_ids_total')})", "replaced by the same id"),
                ],
                floor=True,
            ),
            graph(
                "Checkpoints",
                "Size of the last one.",
                "bytes",
                [(chosen("adaptd_checkpoint_bytes"), "{{instance}}")],
                floor=True,
            ),
            graph(
                "Time for a checkpoint",
                "The loop stands still for so long.",
                "s",
                [(chosen("adaptd_checkpoint_duration_seconds"), "{{instance}}")],
                floor=True,
            ),
            graph(
                "Lag",
                "Bytes that wait in the source; -1 when that cannot be known.",
                "bytes",
                [(chosen("adaptd_source_lag_bytes"), "{{instance}}")],
            ),
            graph(
                "Open files",
                "Open descriptors against the limit.",
                "short",
                [(chosen("process_open_fds"), "open"), (chosen("process_max_fds"), "limit")],
                logarithmic=True,
            ),
        ],
    )


def main(folder: pathlib.Path) -> None:
    made = {"overview": overview(), "learners": learners(), "drift": drift(), "service": service()}
    for name, board in made.items():
        (folder / f"{name}.json").write_text(json.dumps(board, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARDS)
