"""Verbs on a target: chat, generate, evaluate, export, serve; and on base models."""

from __future__ import annotations

from cockpit.command_line.options import DTYPES, FORMAT, QUANTIZATIONS, SAMPLING, SYSTEM, TARGET, Verb, option

GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k")

CHAT = Verb(
    "chat",
    "one answer, or a conversation, with a run, a checkpoint or a model",
    "chat:chat",
    (
        TARGET,
        option("--prompt", metavar="T", help="ask this once and exit"),
        option("--hot", action="store_true", help="ask a run while it trains: its newest weights answer"),
        option("--via", choices=("slurm",), help="run the chat worker as a Slurm job, which ends with the chat"),
        option(
            "--slurm",
            action="append",
            default=[],
            metavar="K=V",
            help="with --via slurm: a setting of launch.slurm for the job, e.g. gres=gpu:1 (that of the run)",
        ),
        SYSTEM,
        *SAMPLING,
    ),
)
GENERATE = Verb(
    "generate",
    "reply to a file of prompts; an interrupted run of it can be continued",
    "generate:generate",
    (
        TARGET,
        option(
            "--input",
            metavar="F",
            required=True,
            help="one prompt a line (.txt), or rows of any format, or rows with `prompt` or `text`",
        ),
        option("--output", metavar="F", required=True, help="a .jsonl or .json file for the rows with their replies"),
        SYSTEM,
        *SAMPLING,
        option("--batch-size", type=int, metavar="N", help="prompts decoded together (32)"),
        option("--devices", metavar="D,…", help="GPUs by number, or cpu (all that are free)"),
        option("--again", action="store_true", help="start over when the output was made with other settings"),
    ),
)
EVAL = Verb(
    "eval",
    "measure a run, a checkpoint or a model on rows, or score replies from elsewhere",
    "evaluate:evaluate",
    (
        option(
            "target",
            nargs="?",
            metavar="TARGET",
            help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id",
        ),
        option("--predictions", metavar="FILE", help="score these JSON lines of reply and reference, without a model"),
        option("--data", metavar="SOURCE", help="rows to measure on (those that the run held out)"),
        FORMAT,
        option("--task", metavar="NAME", help="score replies as answers to this task, e.g. triples"),
        option("--rows", type=int, metavar="N", help="use at most N rows, of each benchmark"),
        option(
            "--benchmark",
            action="append",
            default=[],
            metavar="NAMES",
            help="measure on these benchmarks of lm-evaluation-harness, e.g. hellaswag,arc_easy (repeatable)",
        ),
        option("--benchmark-folder", metavar="DIR", help="a folder with YAML files of further benchmarks"),
        option("--few-shot", type=int, metavar="N", help="examples before each question (as the benchmark says)"),
        option("--chat-template", action="store_true", help="ask a benchmark's questions in the model's chat template"),
        option(
            "--forgetting",
            action="store_true",
            help="ask the 208 bundled questions, of the base too: what has been forgotten, with intervals",
        ),
        option("--samples", type=int, metavar="N", help="generate replies for N of the rows (all); 0 for none"),
        option("--max-new-tokens", type=int, metavar="N", help="longest reply, in tokens (the run's, else 256)"),
        option("--constrained", action="store_true", help="make replies fit the task's JSON schema"),
        option(
            "--thresholds",
            "--threshold",
            action="append",
            default=[],
            metavar="T",
            help="a value to reach, e.g. 'schema_validity >= 0.95'; a failed one exits 1 (repeatable)",
        ),
        option(
            "--judge",
            nargs="?",
            const="",
            action="append",
            metavar="K=V",
            help="let a service score the replies; settings such as model=NAME (repeatable)",
        ),
        option(
            "--against",
            action="append",
            default=[],
            metavar="TARGET",
            help="also measure this, and report whether the difference is beyond noise (repeatable)",
        ),
        option("--out", metavar="DIR", help="folder for the replies and their scores (in the run, else in the home)"),
        option("--again", action="store_true", help="repeat a measurement that is already there"),
        option("--dtype", choices=DTYPES, help="dtype to load the model in (as trained)"),
        option("--quantization", choices=QUANTIZATIONS, help="quantization to load the model with (as trained)"),
    ),
)
EXPORT = Verb(
    "export",
    "write a run, checkpoint or model as a folder that others load, and compare it with its source",
    "export:export",
    (
        option("target", metavar="TARGET", help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id"),
        option("--out", metavar="DIR", required=True, help="the folder to create; it must not exist, or be empty"),
        option("--adapter-only", action="store_true", help="export the adapter alone, not merged into its base"),
        option("--dtype", choices=DTYPES, help="dtype of the weights (as trained)"),
        option(
            "--gguf",
            nargs="?",
            const="auto",
            choices=GGUF_TYPES,
            metavar="TYPE",
            help="also write GGUF: f32, f16, bf16, q8_0 or auto; q6_k, q5_k_m, q4_k_m, … by llama-quantize",
        ),
        option("--converter", metavar="PATH", help="a llama.cpp checkout, for --gguf (otherwise searched for on PATH)"),
    ),
)
MERGE = Verb(
    "merge",
    "merge adapters, checkpoints or models into one",
    "tools:merge",
    (
        option("targets", nargs="+", metavar="TARGET", help="adapters of one base, or whole models of one shape"),
        option("--out", metavar="DIR", required=True, help="the folder to create; it must not exist, or be empty"),
        option("--method", metavar="NAME", help="linear, ties, dare_linear or dare_ties (linear)"),
        option("--weights", metavar="W,…", help="a weight for each target (equal ones)"),
        option("--density", type=float, metavar="F", help="for ties and dare: the part of each change to keep (0.5)"),
        option("--seed", type=int, metavar="N", help="for dare: chooses the part (0)"),
        option("--base", metavar="TARGET", help="of whole models: what they were made from; ties and dare need it"),
        option("--last", type=int, metavar="K", help="the average of a run's last K checkpoints"),
    ),
)
PUSH = Verb(
    "push",
    "upload a model or an adapter to a hub, privately",
    "tools:push",
    (
        option("target", metavar="TARGET", help="an exported folder, or a run, which is exported first"),
        option("repository", metavar="ORG/NAME", help="the repository; it is made if it is not there"),
        option("--hub", metavar="NAME", help="huggingface or modelscope (huggingface)"),
        option("--merged", action="store_true", help="of a run: whole weights, not its adapter alone"),
        option("--public", action="store_true", help="let everybody read it"),
        option("--message", metavar="TEXT", help="of the commits"),
        option("--dry-run", action="store_true", help="list what would be sent, and send nothing"),
    ),
)
SERVE = Verb(
    "serve",
    "serve a model at an OpenAI-compatible address; without a target, list the servers",
    "serve:serve",
    (
        option(
            "target",
            metavar="TARGET",
            nargs="?",
            help="a run, `last`, RUN@STEP, a folder, a catalogue name or a hub id; with --stop a service or port too",
        ),
        option(
            "--host", metavar="H", help="address to listen on (127.0.0.1); one that other machines reach needs a key"
        ),
        option("--port", type=int, metavar="N", help="port; 0 picks a free one (8000)"),
        option("--api-key-env", metavar="NAME", help="the environment variable that holds the clients' API key"),
        option("--task", metavar="NAME", help="wrap a bare text in this task's prompt, e.g. triples"),
        option("--constrained", action="store_true", default=None, help="make every reply fit the task's JSON schema"),
        option("--preset", metavar="NAME", help="default sampling: creative, chat, factual or greedy"),
        option("--max-tokens", type=int, metavar="N", dest="longest", help="default for the longest reply (1024)"),
        option("--slots", type=int, metavar="N", help="replies generated at the same time (16)"),
        option("--queue", type=int, metavar="N", help="requests that may wait for a slot (128)"),
        option("--max-body", type=int, metavar="BYTES", dest="most_bytes", help="largest request (1048576)"),
        option("--timeout", type=float, metavar="SECONDS", dest="seconds", help="longest time for a request (600)"),
        option("--dtype", choices=DTYPES, help="dtype to load the model in (as trained, or as stored)"),
        option("--quantization", choices=QUANTIZATIONS, help="quantization to load the model with (as trained)"),
        option(
            "--adapter",
            action="append",
            dest="adapters",
            metavar="TARGET",
            help="another adapter of the same base, served under its own name (repeatable)",
        ),
        option("--backend", metavar="NAME", help="transformers, or vllm where it is installed (transformers)"),
        option("--devices", metavar="D,…", help="for vllm: GPUs that share the model (the one with most free memory)"),
        option("--context", type=int, metavar="N", help="for vllm: tokens of prompt and reply (the model's)"),
        option("--memory-share", type=float, metavar="F", help="for vllm: share of each GPU's memory (vLLM's default)"),
        option("--vllm-arguments", metavar="TEXT", help="for vllm: further arguments, as on its command line"),
        option("--detach", action="store_true", help="print the address and leave it running"),
        option("--stop", action="store_true", help="stop a server; requests in flight have five seconds to finish"),
    ),
)

BASE_MODEL_VERBS = (
    Verb(
        "find",
        "list models on this machine, and what is damaged",
        "tools:model_find",
        (option("folders", nargs="*", metavar="FOLDER", help="also search here"),),
    ),
    Verb(
        "pull",
        "download a model into the home",
        "tools:model_pull",
        (option("name", metavar="NAME", help="a catalogue name or org/name on the hub"),),
    ),
    Verb(
        "verify",
        "check a model folder, file by file",
        "tools:model_verify",
        (option("folder", metavar="FOLDER", help="a model folder, e.g. one that was copied by hand"),),
    ),
)
