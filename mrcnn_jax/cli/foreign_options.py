"""Options that other programs have, and what `mrcnn` has in their place."""

from collections.abc import Collection
from difflib import get_close_matches

_OURS = {
    "batch-size batch bs ims-per-batch train-batch-size b": {
        "train": "--train.images-per-device, the images per device and step",
        "evaluate": "--evaluation.images-per-device",
    },
    "lr lr0 learning-rate base-lr": {
        "train": "--train.learning-rate, which is for --train.reference-batch images per step and scaled to "
        "the actual number"
    },
    "epochs epoch num-epochs max-epochs n-epochs": {
        "train": "--train.epochs, or --train.steps"
    },
    "steps max-steps num-steps iterations iters max-iter max-iters train-steps": {"train": "--train.steps"},
    "lr-steps milestones lr-milestones decay-steps": {"train": "--train.decay-steps"},
    "warmup warmup-epochs warmup-iters warmup-steps": {"train": "--train.warmup-steps"},
    "imgsz img-size image-size img input-size resolution size min-size": {
        "train": "--data.short-edge and --data.long-edge for training, --data.short-edge-test for evaluation",
        "": "--data.short-edge-test and --data.long-edge",
    },
    "max-size": {"": "--data.long-edge"},
    "device devices gpu gpus cuda gpu-id gpu-ids cpu no-cuda accelerator num-gpus": {
        "": "the environment: all devices take part, JAX_PLATFORMS=cpu uses the CPU, and "
        "CUDA_VISIBLE_DEVICES=0 the first GPU alone"
    },
    "workers num-workers threads j": {"train": "--data.threads", "evaluate": "--data.threads"},
    "weights pretrained ckpt checkpoint model-path load-from init-weights load finetune fine-tune": {
        "train": "the directory of the weights in place of the experiment, `mrcnn train DIR`, or "
        "--train.init-from DIR",
        "": "the directory of a run, or a name of `mrcnn zoo`, which comes first",
    },
    "resume resume-from continue auto-resume": {
        "train": "the same command again, or `mrcnn train DIR` with the directory of the run"
    },
    "output output-dir out-dir out save-dir work-dir project name exp exp-name logdir log-dir o run-dir "
    "save save-path outdir": {"train": "--directory", "": "--out"},
    "config cfg config-file c": {
        "train": "the name of an experiment, which comes first (`mrcnn train --help` lists them); every "
        "field is an option",
    },
    "num-classes nc n-classes classes class-names names": {
        "train": "nothing: number and names of the classes are those of the data set"
    },
    "data dataset data-path data-dir dataset-dir root": {
        "train": "--data.dataset", "evaluate": "--dataset", "dataset": "the folder, which comes first",
    },
    "seed random-seed": {"train": "--train.seed"},
    "optimizer optim": {"train": "--train.optimizer"},
    "weight-decay wd": {"train": "--train.weight-decay"},
    "momentum": {"train": "--train.momentum"},
    "clip-grad grad-clip max-grad-norm gradient-clip-val clip-norm": {"train": "--train.clip-norm"},
    "accumulate grad-accum gradient-accumulation-steps": {"train": "--train.accumulate"},
    "amp fp16 bf16 half precision mixed-precision dtype": {"train": "--train.dtype bfloat16"},
    "backbone arch model m": {
        "train": "--model.backbone.name, or an experiment that has it (`mrcnn train --help`)",
        "": "the directory of a run, or a name of `mrcnn zoo`, which comes first",
    },
    "save-period save-every save-interval save-freq checkpoint-interval checkpoint-every": {
        "train": "--train.checkpoint-every and --train.checkpoint-minutes"
    },
    "print-freq log-interval log-freq log-every logging-steps": {"train": "--train.log-every"},
    "eval-interval eval-freq val-interval eval-every eval-period evaluate-every": {
        "train": "--train.evaluate-every"
    },
    "eval-only test-only evaluate eval val validate only-test": {"train": "the command `mrcnn evaluate DIR`"},
    "patience early-stopping": {
        "train": "--train.patience, evaluations without improvement, with --train.evaluate-every"
    },
    "ema ema-decay model-ema": {"train": "--train.ema-decay"},
    "scheduler lr-scheduler lr-schedule cos-lr cosine": {"train": "--train.schedule"},
    "freeze freeze-backbone": {"train": "--model.backbone.freeze-stages or --train.freeze-backbone-steps"},
    "flip hflip augment no-augment": {"train": "--augment PRESET or --data.augment.flip SHARE"},
    "world-size nnodes num-machines nproc-per-node dist-url local-rank": {
        "train": "--coordinator, --processes and --process; Slurm, Open MPI and TPU pods are recognised"
    },
    "conf confidence conf-thres conf-threshold score-thr score-threshold threshold thresh score-thresh "
    "min-score confidence-threshold": {
        "predict": "--score", "serve": "--score-threshold", "": "--model.box.score-threshold"
    },
    "iou iou-thres iou-threshold nms nms-threshold nms-thr": {"": "--model.box.nms-iou"},
    "max-det max-detections max-dets detections topk": {"": "--model.box.max-detections"},
    "source input images image i input-dir image-path files": {
        "predict": "the image files or folders, which follow the directory"
    },
    "val valid validation-split val-split test-size split-ratio": {
        "dataset": "--validation-images, the number of images held out, --split 0.8 0.1 0.1, the shares of "
        "train, validation and test, or --validation FOLDER FILE",
    },
    "format type annotation-format": {"dataset": "nothing: the format is recognised"},
    "group-by groups stratify": {"dataset": "--group, as images are sampled by class already"},
    "force overwrite exist-ok": {"dataset": "--overwrite"},
    "show visualize plot view-img draw": {
        "dataset": "--draw FILE", "evaluate": "--pictures N", "predict": "nothing: pictures are in --out"
    },
}  # fmt: skip


def answer(option: str, command: str, known: Collection[str]) -> str:
    """Returns the sentence for an option that a command lacks.

    Args:
        option: as given, "--lr".
        command: "train".
        known: options of the command.
    """
    name = option.lstrip("-").replace("_", "-").lower()
    refused = f"mrcnn {command} has no option {option}"
    for names, ours in _OURS.items():
        answered = ours.get(command) or ours.get("")
        if name in names.split() and answered and (not answered.startswith("--") or _has(known, answered)):
            return f"{refused}; use {answered}"
    last = {each.rpartition(".")[2].lstrip("-"): each for each in sorted(known)}
    close = get_close_matches(option, known, 2, 0.82) or [
        last[match] for match in get_close_matches(name, last, 1, 0.8)
    ]
    if close:
        return f"{refused}; did you mean {' or '.join(close)}?"
    listing = f"mrcnn train EXPERIMENT --help{'-all'}" if command == "train" else f"mrcnn {command} --help"
    return f"{refused}; `{listing}` lists the options"


def _has(known: Collection[str], answered: str) -> bool:
    return answered.split()[0].rstrip(",;:") in known
