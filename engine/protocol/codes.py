"""Stable names for problems, warnings, pauses and marks. Code compares codes; titles and causes may be reworded.

A code is lower-case words joined by dots: the first says what it is about, the rest what happened. A code never gets
another meaning and is never renamed, since scripts, journals and `--json` output hold it. Two places share a code when
the user would do the same about both. The file has more than 400 lines because it is one table.

    python -m engine.protocol.explanations > docs/codes.md
"""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN = "unknown"
"""The code of a problem whose sender named none, such as an older version. Our own code always names one."""

CODES: dict[str, str] = {
    # ── the engine and the app ──
    "engine.unreachable": "The engine did not answer in time. Look at `cockpit engine status` and at its log.",
    "engine.not_started": "The engine was started and ended at once. The message quotes its log, which says why.",
    "engine.not_running": "No engine runs for this home. `cockpit engine start` starts one.",
    "engine.not_attached": "The app is not connected to the engine yet. Wait a moment and try again.",
    "engine.still_ending": "The engine was asked to end and has not ended yet. Look at its log.",
    "engine.jobs_live": "The engine does not stop while jobs are live. Stop them first, or use `--force`.",
    "engine.protocol_mismatch": (
        "The cockpit and the engine are of different versions. Restart the side that the message names."
    ),
    "engine.unknown_operation": (
        "The engine does not know this operation: it is of another version. Restart the older side."
    ),
    "engine.ends_at_logout": (
        "At your last logout, systemd would end the engine and its runs. The message has the line that prevents this."
    ),
    "engine.closing": "The engine was ending when it was asked. Ask again: the next engine answers.",
    "engine.full": (
        "So many clients are connected that the engine may open no more files. Close some, or raise `ulimit -n`."
    ),
    "engine.other_user": (
        "The engine, its socket or the directory of the socket belongs to another user. Nothing was sent. Run as the "
        "user who started it, or use a home of your own."
    ),
    "engine.no_socket_directory": (
        "No directory can hold the engine's sockets. The message says why for each that was tried."
    ),
    "engine.socket_not_private": (
        "The directory of the sockets belongs to another user or is open to others. Restrict it to yourself."
    ),
    "engine.bug": "The engine failed because of a bug. Its log holds the traceback; please report it.",
    "app.fault": (
        "The app itself raised an exception. The app and all runs go on; the report is in `app.log` in the home."
    ),
    "app.needs_terminal": "The app was started without a terminal. Use the verbs, which need none.",
    "app.read_only": "This cockpit was started with `--readonly` and changes nothing. Start it without the option.",
    # ── other hosts ──
    "remote.host_invalid": "The argument of `--on` is not a host. Write it as for ssh: `user@host`.",
    "remote.ssh_missing": "The ssh command cannot be started. Install OpenSSH, or set `COCKPIT_SSH`.",
    "remote.ssh_failed": (
        "The host was not reached, or the ssh login failed. The message has ssh's own last line; try ssh in a terminal."
    ),
    "remote.silent": "The host does not answer any more, or not yet. The app tries again by itself.",
    "remote.no_cockpit": (
        "There is no cockpit on the other host's PATH. Install it, or write its path after the host in `--on`."
    ),
    "remote.too_old": "The cockpit on the other host is too old for `--on`. Update it there.",
    "remote.ended": "The cockpit on the other host ended before it answered. The message has its own last line.",
    "remote.forward_failed": "The engine's socket could not be forwarded by ssh. The message has ssh's own last line.",
    "remote.link_lost": (
        "The connection was lost while a verb ran on the other host, which may have done its work. Look before you "
        "repeat it."
    ),
    "remote.verb_refused": "This verb does not work through `--on`. The message has the line to run instead.",
    "remote.one_host": "A verb works on one host, and several were named. Name one.",
    # ── requests ──
    "request.usage": "The command line is wrong. `cockpit VERB --help` shows what a verb takes.",
    "request.invalid": "The request is wrong, or cannot be carried out. Correct it as the message says.",
    "request.malformed": (
        "The engine could not read a request. The two sides are probably of different versions: restart the older one."
    ),
    "request.unconfirmed": (
        "The request needs a confirmation, and there is no terminal to ask on. Give the run's whole id to delete it, "
        "or add `--yes`."
    ),
    "request.unknown": "The worker does not know this question or command. The message says what it can be asked.",
    "request.cancelled": "The request was cancelled. What was done until then is kept where the message says so.",
    "request.failed": "The worker failed while it was answering. Its log holds the traceback.",
    # ── files and the disk ──
    "file.not_found": "There is no such file or folder. Check the path.",
    "file.unreadable": "A file cannot be read. Check its permissions and its content.",
    "file.unwritable": "A file cannot be written. Check permissions and free space.",
    "file.failed": "A file operation failed. The message gives the operating system's reason.",
    "disk.low": "There is too little free disk space to begin. Free some, or name another place.",
    "output.not_empty": "The output folder or file already exists, and nothing is overwritten. Name a new one.",
    # ── profiles ──
    "profile.invalid": (
        "The profile has mistakes, each listed with its line and column. `cockpit profile check` lists them too."
    ),
    "profile.syntax": "The profile is not valid YAML at this place. Correct it there.",
    "profile.unknown_key": "The profile has a section or a key that does not exist. Correct or remove it.",
    "profile.missing": "A required setting is missing. Add it.",
    "profile.value": "A setting has a value that it cannot take. The message says which values it takes.",
    "profile.override": "An override (`--set KEY=VALUE`) cannot be applied. Correct it.",
    "profile.doubtful": (
        "The settings are valid, but the run will probably not do what you want. Change them as the message says, or "
        "leave them if you mean it."
    ),
    "profile.conflict": (
        "A setting does not fit another one, or names something that does not exist. Change it as the message says."
    ),
    "profile.not_found": (
        "No file and no built-in profile has this name. `cockpit profile list` lists the built-in ones."
    ),
    "profile.outdated": (
        "The profile that is stored with this run is no longer valid: something that it names is gone, or cockpit has "
        "changed."
    ),
    "profile.environment": (
        "The shell that submits the run lacks a variable that the profile needs. Export it, and submit again."
    ),
    "profile.rows": (
        "The first rows of a source cannot be used: they cannot be read, too many are bad, or `evaluation.task` cannot "
        "score their replies. Correct what the message names."
    ),
    "profile.host": (
        "This host does not have the devices that the profile asks for. Set `launch.processes` and `launch.devices`."
    ),
    "launch.unshardable": (
        "The model cannot be divided among ranks, for the reason that the message gives. Use `launch.strategy: ddp`."
    ),
    "launch.deepspeed": (
        "DeepSpeed cannot be used, or the ds_config contradicts the profile; the message names both. Install "
        "`cockpit[deepspeed]`, or write `auto` in the ds_config."
    ),
    "launch.host_unreachable": (
        "A host of `launch.hosts` cannot be reached by ssh without a prompt. Set up a key, or name fewer hosts."
    ),
    "launch.not_shared": (
        "A host does not see the run's directory. `COCKPIT_HOME` must be on a file system that all hosts share."
    ),
    "launch.versions_differ": "Hosts have different versions of a library. Use one environment on all of them.",
    "launch.node_missing": (
        "Not all nodes of the run came, or they do not see its directory. Look at the output of the missing node."
    ),
    "launch.no_address": (
        "A host cannot listen on the address at which the hosts meet. Name their common interface in "
        "`launch.environment`, as `GLOO_SOCKET_IFNAME`."
    ),
    "launch.host_lost": (
        "The run lost a host while it trained; the message says whether the host can still be reached. `cockpit "
        "resume` goes on from the last checkpoint."
    ),
    "launch.host_silent": (
        "Nothing comes from a host of the run; the message says whether its files still change. The run goes on if the "
        "host comes back soon, else it ends with `launch.host_lost`."
    ),
    "launch.run_by_hand": "The run waits until you have run its line on each host. The message has the lines.",
    "launch.devices_unused": (
        "The profile names more `launch.devices` than there are processes, and each process uses one. Set "
        "`launch.processes` to their number, or name fewer."
    ),
    "queue.devices_held": (
        "The run waits in the queue until devices are free; the message says who holds them. It starts by itself."
    ),
    "queue.slurm": "The run waits in Slurm's queue; the message has Slurm's reason. It starts by itself.",
    "slurm.refused": (
        "Slurm did not accept the run's job. Correct `launch.slurm`, or submit the script in the run's directory by "
        "hand to see more."
    ),
    "slurm.ended": (
        "Slurm ended the run's job, for the reason that the message gives. `cockpit resume` goes on from the last "
        "checkpoint."
    ),
    "slurm.requeued": "Slurm has queued the run's job again. It goes on by itself from its last checkpoint.",
    # ── runs ──
    "run.none": "There are no runs yet. `cockpit demo` or `cockpit train PROFILE` starts one.",
    "run.not_found": "No run has this id. `cockpit runs` lists them.",
    "run.ambiguous": "Several runs have an id that starts like this. Use a longer prefix.",
    "run.deleted": "The run was deleted while it was being followed.",
    "run.live": "The run has not ended, and this needs a run that has. Wait for its end, or stop it.",
    "run.not_live": "The run is not running, and this needs a run that is. Resume it, or wait until it has started.",
    "run.no_row_losses": (
        "The run has recorded no losses of rows. Runs of sft and pretrain do so while `logging.row_losses` is true."
    ),
    "run.not_queued": "The run is not in the queue, so its place there cannot change.",
    "run.not_training": "Only a run that is training can answer with its newest weights. Ask one of its checkpoints.",
    "run.past_training": "The run has finished training and is in a later stage, which takes no commands but `stop`.",
    "run.ended": "The run ended before it had answered. Ask its last checkpoint.",
    "run.lost": (
        "The run's worker is gone, and nobody knows how it ended. `cockpit resume` goes on from the last checkpoint."
    ),
    "run.damaged": (
        "Files of the run are missing or damaged; the message names them. What is whole is shown, and other runs are "
        "not affected."
    ),
    "run.terminated": (
        "The run's worker received SIGTERM, saved a checkpoint and ended in order. `cockpit resume` goes on from there."
    ),
    "run.other_host": "The run belongs to another host. Run `cockpit` there.",
    "stage.no_predecessor": "There is no finished earlier stage to start from. Leave `--from` out.",
    "stage.settings_changed": (
        "Settings of an earlier stage have changed, so the later stage cannot start from its results. Start earlier."
    ),
    "stage.failed": "A stage of the run failed. The message and the log say why; `cockpit resume` repeats the stage.",
    "clean.refused": (
        "What was to be removed is in use, is needed to resume, or is gone. Let `cockpit clean` list again."
    ),
    "checkpoint.none": "The run has no checkpoint yet. `checkpoint.every_steps` says when it saves one.",
    "checkpoint.not_found": "The run has no checkpoint of this step. The message lists those that it has.",
    "checkpoint.damaged": (
        "Files of a checkpoint are not as they were written. The message names them, and a whole checkpoint from which "
        "to resume."
    ),
    "checkpoint.off_journal": (
        "The run's journal is damaged and leads to none of its checkpoints. Name one by its step: `RUN@STEP`."
    ),
    "checkpoint.unreadable": (
        "A checkpoint that was just written cannot be read back. Check the disk; resume from the one before."
    ),
    "plot.nothing": "The run has no values to plot yet. Wait for its first metrics.",
    "plot.failed": "A plot could not be drawn. The log says why; `cockpit plot` tries again.",
    "judgement.invalid": (
        "A judgement is neither a vote between two replies nor a rating of one. Correct the script that sent it."
    ),
    # ── workers and services ──
    "worker.not_started": "A worker process could not be started. The message gives the operating system's reason.",
    "worker.failed": "A worker ended with an error status and left no message of its own. Read the run's log.",
    "worker.killed": "A signal ended a worker. The message explains the signal.",
    "worker.silent": (
        "A rank has sent no heartbeat, or has made no progress, for an unusually long time. The log holds the stacks "
        "of all ranks."
    ),
    "service.not_found": "The service has ended or never existed. Open it again.",
    "service.plain_http": (
        "A key and rows travel to a service unencrypted. Use `https://`, or an ssh tunnel and `http://localhost`."
    ),
    "service.unknown_kind": "There is no service of this kind. The message lists the kinds.",
    "service.ended": "The service's worker has ended. Open the service again.",
    "service.nothing_open": "The service has no model loaded or no profile open. Choose one first.",
    "server.not_found": "No server matches. `cockpit serve` lists them.",
    "server.ambiguous": "Several servers match. Name one of them by its id.",
    # ── memory, devices, packages ──
    "memory.exhausted": (
        "Memory was not enough for the model, the step or the reply. Use the settings that the message names."
    ),
    "memory.host_exhausted": "The host ran out of memory, and a worker ended. Use settings that need less.",
    "memory.device_full": (
        "No device has room for the model. Stop what holds the memory, or use a quantised or smaller model."
    ),
    "memory.will_not_fit": (
        "The forecast says that the run needs more memory than there is. Make one of the changes that the message "
        "names."
    ),
    "memory.near": (
        "The forecast does not tell whether the run fits. Nothing to do; `cockpit fit` finds settings that need less "
        "memory."
    ),
    "forecast.unsupported": (
        "There is no forecast for this profile. Nothing to do for a run: its rehearsal shows whether it fits."
    ),
    "forecast.card_size": "A card is neither a size nor a known type. Write `24GB`, `8x80GB` or `H100`.",
    "forecast.card_count": (
        "The global batch cannot be divided evenly among so many cards. Name one of the numbers in the message, or "
        "change `training.accumulation`."
    ),
    "forecast.strategy": "The message names the strategy that was chosen for `launch.strategy: auto`. Nothing to do.",
    "memory.batch_found": (
        "The message names the micro-batch that was chosen for `training.micro_batch: auto`. Nothing to do."
    ),
    "memory.batch_not_tried": (
        "The longest batch was not tried before the first step, because it certainly fits. Nothing to do."
    ),
    "memory.batch_cut": (
        "A micro-batch did not fit in memory, so the run goes on with smaller ones and the same global batch. Nothing "
        "to do."
    ),
    "device.too_few": "There are more ranks than devices. Set `launch.processes` to the number of devices.",
    "device.no_collectives": (
        "This kind of device has no back end in torch.distributed. Train with one process, or install "
        "the vendor's package."
    ),
    "trial.failed": (
        "A faster code path does not work on this device, so the plain path is used. Nothing to do; `cockpit doctor "
        "--again` tries it again."
    ),
    "trial.device_lost": (
        "The trial of a faster code path broke the device's state in this process. Start the job again: the path is "
        "not tried again."
    ),
    "device.masks_disjoint": (
        "The engine's mask of devices and this shell's have no device in common. Change the shell's, or restart the "
        "engine without one."
    ),
    "device.no_kernels": (
        "The installed torch has no kernels for this card's compute capability. Install the build of torch that the "
        "message names, or hide the card by its mask."
    ),
    "device.no_sensor": (
        "No device of the run reports its temperature, so `limits.temperature` has no effect. Watch the temperature on "
        "the host, or remove the limit."
    ),
    "device.unsupported": "This device does not have what a setting needs. Change the setting as the message says.",
    "device.unreliable": (
        "A device gave wrong results, or reports errors that make its results unreliable. Take it out of "
        "`launch.devices`, and have it looked at."
    ),
    "device.slow_dtype": "This CPU computes the chosen dtype slowly, so float32 is used. Nothing to do.",
    "package.too_old": "A model or setting needs a newer version of a package. Install the one that the message names.",
    "package.missing": "A setting needs a Python package that is not installed. Install it, or change the setting.",
    # ── models, adapters, tokenizers, templates ──
    "model.not_found": (
        "There is no such model: the name is no run, folder, catalogue name or hub id. Check the spelling."
    ),
    "model.ambiguous": "The folder holds several models. Name the file that you mean.",
    "model.not_pulled": "The model is not on this machine. `cockpit model pull` fetches it.",
    "model.base_changed": "The base of an adapter has other weights than when the adapter was trained. Put them back.",
    "model.base_missing": "The base model of an adapter is missing. Copy its folder to where the message says.",
    "model.gated": "The model's licence must be accepted on the hub. Accept it there and set `HF_TOKEN`.",
    "model.fetch_failed": "The model could not be fetched. Check the network or the mirror, and pull again.",
    "model.unexpected": (
        "A fetched or converted model is not the expected one. Use another mirror, or the package versions in "
        "`constraints.txt`."
    ),
    "model.unloadable": (
        "The model's folder is damaged or of a kind that cannot be loaded. `cockpit model verify` examines it."
    ),
    "model.gguf_unsupported": "This GGUF file cannot be loaded. Name the model's own folder or hub id.",
    "model.recurrent": "A recurrent model (Mamba, RWKV) can be trained, but cockpit cannot generate replies with it.",
    "model.is_reward": "This is a reward model, which scores replies and writes none. Name a language model.",
    "model.not_reward": "This is not a reward model. Name a run with `method.kind` reward.",
    "model.no_reward_head": "A reward model cannot be made from this model. The message says why, and which to use.",
    "model.quantized_unreadable": (
        "The base's weights are stored quantised, with a method whose library is not installed. Install it, or name "
        "the model that was quantised."
    ),
    "model.not_finite": "The model's weights contain values that are not finite. Choose an earlier checkpoint.",
    "adapter.unsupported": (
        "This kind of adapter does not work with the model. Set `adapter.kind` to lora, or change what the message "
        "names."
    ),
    "adapter.unknown_target": "Some names in `adapter.targets` are not layers of the model. Correct or remove them.",
    "adapter.no_layer": "No layer of the model matches `adapter.targets`. Name layers that it has.",
    "adapter.not_mergeable": "The adapter cannot be merged into its base. Export it alone with `--adapter-only`.",
    "adapter.dropout_ignored": "The method compares replies, so the adapter's dropout is switched off. Nothing to do.",
    "tokenizer.missing": "The model has no tokenizer. Copy the tokenizer's files into the model's folder.",
    "tokenizer.beyond_embedding": (
        "The tokenizer has ids for which the model's embedding has no row. Enlarge the embedding, or remove the tokens."
    ),
    "tokenizer.unusable": "The tokenizer's files cannot be used. Copy them again from where the model came from.",
    "tokenizer.untrained": "The profile's tokenizer has not been trained yet. Prepare the data first.",
    "tokenizer.no_text": "There is no text to train a tokenizer on. Name files with good rows.",
    "tokenizer.note": "The tokenizer that was trained is not quite what was asked for. See `model.tokenizer`.",
    "template.not_found": "The file that `data.template` names does not exist. Correct the path.",
    "template.endless": (
        "The chat template takes more time or memory than any conversation needs. Use the publisher's template."
    ),
    "template.none": "The base has no chat template, and the data holds conversations. Name one in `data.template`.",
    "template.changed": (
        "The tokenizer or chat template is not the one with which the checkpoint was trained. Put the original files "
        "back."
    ),
    "template.leaves_out": (
        "The chat template leaves out tools, tool calls or thoughts of some rows. Name a template that writes them."
    ),
    "template.unrolled": (
        "Some conversations became several sequences, because the chat template changes earlier turns. Nothing to do."
    ),
    "template.opens_thought": (
        "The base's chat template opens a thought before each reply, and this run's does not. See `data.thinking`."
    ),
    # ── data ──
    "data.source.unusable": "A data source cannot be read. The message names the file and the reason.",
    "data.tokenised_unusable": "Tokenised data cannot be used. Name the rows that it was made from.",
    "data.cache_damaged": "Prepared rows in the cache are damaged, and are made again. Check the disk.",
    "data.rows.bad": "More rows are bad than `data.max_rejected` allows. Correct them, or raise the limit.",
    "data.rows.wrong_kind": (
        "The rows are of a kind that another method trains on. Change `method.kind`, or name other rows."
    ),
    "data.rows.masked": (
        "No token would be trained, because every row is cut before its reply. Raise `data.max_length`."
    ),
    "data.rows.misfit": (
        "A held-out reply is not an answer to `evaluation.task`, so it cannot be scored. Leave the task out, or hold "
        "out other rows."
    ),
    "data.rows.padded": (
        "Rows are padded, because this model would see across rows that share a sequence. Nothing to do."
    ),
    "data.rows.not_joinable": (
        "This model cannot keep rows apart that share a sequence. Change the setting that the message names."
    ),
    "data.rows.left_out": "Bad rows were left out. Read the reasons in the rejects file.",
    "data.columns.unused": "Some columns of the data are not used. Check that none of them should be trained on.",
    "data.files.left_out": (
        "Files of a folder were not read, because their names say that they are for another split. Name them if you "
        "want them."
    ),
    "data.split.cut": "Some held-out rows are similar to training rows. Drop similar rows, or name held-out files.",
    "data.rows.cleaned": "Cleaning or deduplication left out rows. Check the rejects file for rows that should stay.",
    "data.rows.excluded": (
        "The list in `data.exclude` leaves out training rows, or uses them less often. Nothing to do if you want that."
    ),
    "data.rows.cut": (
        "Rows were cut at `data.max_length`, or left out because nothing of the reply remained. Raise it if that "
        "matters."
    ),
    "data.train.empty": "No training row is left. Name files with rows, or relax what `data` demands of them.",
    "data.split.empty": "No validation row is left. Raise `data.split.validation`, or name other files.",
    "data.turn_end_untrained": (
        "The end of a turn is never trained, so the model would not learn to stop. Change the template or the length."
    ),
    "row.invalid": "In a rejects file: the row does not have the form of its kind. Correct it in its file.",
    "row.empty": "In a rejects file: the row has no text, or an empty reply. Correct it, or leave it out.",
    "row.unwanted": "In a rejects file: a rule of `data.clean` dropped the row. Relax the rule if the row should stay.",
    "row.duplicate": "In a rejects file: the row repeats another one, or one that is held out. Nothing to do.",
    "expand.key_name": (
        "The value of `api_key_env` is not the name of a variable. Put the key into a variable and name that."
    ),
    "expand.key_missing": "The variable that should hold the service's key is not set. Export it.",
    "expand.rate_limit": "The service's rate limit is used up. The same command goes on later.",
    "expand.refused": (
        "The service refuses requests: the key, the address or the credit is wrong. Correct it; the same command "
        "goes on."
    ),
    "expand.no_answer": "The service gave no answer several times in succession. The same command goes on from here.",
    "expand.no_seed": "No row can serve as an example for the task. Name another task or other rows.",
    "expand.incomplete": "Some rows that `data.expand` asks for have not been generated. Start with `--from expand`.",
    "expand.rejected": "Some generated rows were rejected. Read the reasons in the rejects file.",
    "expand.limit": (
        "Fewer rows were generated than asked for, because a limit was reached. Raise it, or go on with these rows."
    ),
    "expand.stalled": (
        "Fewer rows were generated than asked for, because the last answers held no good row. Change the temperature "
        "or the prompt."
    ),
    # ── training ──
    "training.failed": (
        "Training failed with an error that has no code of its own. Read the log; `cockpit resume` goes on from "
        "the last checkpoint."
    ),
    "training.batch_held": (
        "A step was held back because of its loss or gradient. Look at its rows; then skip them, roll back, or go on."
    ),
    "training.small_batches": (
        "Micro-batches have too few tokens to keep the device busy. Use larger ones, and less accumulation."
    ),
    "training.no_aux_loss": (
        "An auxiliary loss was asked for, but the base has no router that it could balance. Leave "
        "`training.router_aux_loss` out."
    ),
    "evaluation.drift": (
        "The model has moved further from its base than `evaluation.drift_limit`. A lower learning rate, fewer steps "
        "or some general rows keep it closer."
    ),
    "evaluation.no_drift": (
        "Drift is not measured, because the base's answers are not known. Nothing to do; a new run measures it."
    ),
    "training.row_losses": "The losses of rows cannot be recorded any more. Free some space; the run goes on.",
    "training.long_rows": (
        "Some rows are longer than `training.tokens_per_batch`, so each is a micro-batch of its own. Nothing to do if "
        "the memory suffices."
    ),
    "training.doubtful": (
        "Now that the number of steps is known, a setting will probably not do what you want. The hint names it."
    ),
    "training.overfitting": (
        "The held-out loss rises while the training loss falls. Stop and take the best checkpoint, or add data."
    ),
    "training.terminated": "The run received SIGTERM, and ends with a checkpoint. `cockpit resume` goes on from there.",
    "training.no_checkpoint": (
        "The run stopped without a checkpoint of its last step, because it could not be written. Free disk space, then "
        "resume."
    ),
    "compile.failed": "The model could not be compiled by torch, so it runs uncompiled. Nothing to do.",
    "compile.unsupported": (
        "The model's layers cannot be recognised, so nothing is compiled. Set `training.compile` to false."
    ),
    "resume.ranks_changed": (
        "The run was resumed on another number of ranks, with the same global batch. Nothing to do."
    ),
    "resume.position": (
        "The size of the global batch has changed, so some rows are trained twice or not at all. The message says how "
        "many."
    ),
    "resume.nothing_left": (
        "The run has already done all the steps that its settings ask for. Raise the number of steps or epochs."
    ),
    "resume.drift": (
        "The run was resumed, but its numbers will differ from those of an uninterrupted run. Nothing to do if you "
        "expected that."
    ),
    "logging.failed": "A logger failed, and receives nothing more in this attempt. The run and its journal go on.",
    "logging.tracker_failed": (
        "A tracker did not accept the run's metrics. The run goes on. Check the service and its login, or set "
        "`logging.offline`."
    ),
    "logging.wandb_failed": "Weights & Biases receives nothing from this attempt. Log in, or set it to offline.",
    "notify.failed": "A notice about a run was not sent. Correct the address that the message names.",
    "setting.refused": "A setting cannot be changed to this value while the run is running. The message says why.",
    "command.no_choice": "There is no such choice for a batch that is held back. Use skip or rollback.",
    "command.nothing_held": (
        "No batch is held back, so there is nothing to skip or to roll back. Use `cockpit continue` alone."
    ),
    "command.no_way_back": "There is no checkpoint before this step to roll back to. Skip the rows instead.",
    "pause.asked": "The run is paused because somebody asked for it. `cockpit continue` lets it go on.",
    "pause.disk_low": "The run is paused because the disk is nearly full. It goes on when there is room again.",
    "pause.host_memory": (
        "The run is paused because the host uses too much memory. It goes on when the use is below the limit."
    ),
    "pause.host_cpu": "The run is paused because other programs need the CPU. It goes on when they need less.",
    "pause.device_hot": "The run is paused because a device is too hot. It goes on when the device has cooled.",
    "pause.loss_not_finite": (
        "The run is paused because a step's loss is not finite. Look at its rows; skip them, roll back, or go on."
    ),
    "pause.gradient_not_finite": (
        "The run is paused because a step's gradient is not finite. Look at its rows; skip them, roll back, or go on."
    ),
    "pause.loss_spike": (
        "The run is paused because a step's loss is far above the usual. Look at its rows; skip them, roll back, "
        "or go on."
    ),
    "mark.setting": "In the ledger: a setting was changed while the run was running.",
    "mark.continue": "In the ledger: a paused run went on.",
    "mark.skip": "In the ledger: rows were left out for the rest of the run.",
    "mark.rollback": "In the ledger: the run went back to an earlier checkpoint.",
    "mark.rewind": "In the ledger: the run was resumed from a checkpoint that was not its newest.",
    "mark.early_stopping": "In the ledger: the run ended early because held-out results no longer improved.",
    # ── evaluation, generation, export, serving ──
    "evaluation.no_rows": "There are no rows to evaluate on. Name some with `--data`.",
    "evaluation.rows_gone": "The run's prepared rows have been removed. Name rows with `--data`.",
    "evaluation.no_metric": "The metric of `evaluation.early_stopping` is not evaluated. Name one that is.",
    "evaluation.threshold_missed": (
        "A result misses one of `evaluation.thresholds`. Train longer, use more or better data, or change the "
        "threshold."
    ),
    "evaluation.benchmark_failed": (
        "A benchmark cannot be measured, for example because its rows cannot be fetched. See the cause in the message."
    ),
    "evaluation.benchmark_unknown": "There is no benchmark with this name. `lm_eval ls tasks` lists those that exist.",
    "evaluation.failed": "The scoring process ended without a result. Run it again with fewer rows.",
    "generation.failed": (
        "The model raised an error while it was generating. The message has the first line of the error."
    ),
    "generation.process_failed": (
        "A process of batch generation ended. Its log says why; the same command goes on where it stopped."
    ),
    "push.failed": (
        "The model was not uploaded, or not completely. The message says why. Push again: it goes on where it stopped."
    ),
    "merge.refused": "These adapters or models cannot be merged with each other. The message says why.",
    "export.disagrees": (
        "The export would answer differently from the checkpoint, so it was not written. Export the adapter alone with "
        "`--adapter-only`."
    ),
    "export.no_adapter": "The model has no adapter to export alone. Leave `--adapter-only` out.",
    "export.not_castable": "Only adapters in safetensors can be cast. Leave `--dtype` out.",
    "export.gguf_unsupported": "GGUF is for whole language models only. Leave `--gguf` out.",
    "export.no_converter": (
        "There is no converter to GGUF on this machine. Name a checkout of llama.cpp with `--converter`."
    ),
    "export.converter_failed": (
        "The converter to GGUF does not accept this model. Try a newer llama.cpp, or leave `--gguf` out."
    ),
    "serving.adapter_refused": "This adapter cannot be served beside the others. Serve it alone, on another port.",
    "serving.address_unavailable": "The server cannot listen on this address. `--port 0` takes a free port.",
    "serving.key_required": (
        "The server can be reached from other machines and needs a key. Name a variable with `--api-key-env`."
    ),
    "serving.key_missing": "The variable that should hold the server's key is not set. Export it and serve again.",
    "serving.adapter_unsupported": (
        "The other backend does not serve adapters of this kind. Serve a merged export, or leave `--backend` out."
    ),
    "serving.backend_failed": "The server of another backend did not start. Read its output in the service's log.",
    # ── findings about a run: `cockpit why` ──
    "slow.data": "Much of a step is spent waiting for data. Set `training.workers` as the line says.",
    "slow.copy": "Much of a step is spent copying batches to the device. Set `training.workers` as the line says.",
    "slow.rank": "One rank is slower than the others, which wait. Look at its card with `cockpit doctor health`.",
    "slow.throttled": "A card is throttled by heat or by its power supply. Check its cooling and its power.",
    "slow.link": "A card's PCIe link is narrower or slower than it could be. Seat it again, or use another slot.",
    "slow.reduction": "Much of a step is spent summing gradients over the ranks. Raise `training.accumulation`.",
    "slow.logging": "Much of the time is spent on logging. Raise `logging.every_steps`.",
    "slow.evaluation": "Much of the time is spent on evaluations. Raise `evaluation.every_steps`.",
    "slow.saving": "Much of the time is spent saving checkpoints. Raise `checkpoint.every_steps`.",
    "slow.padding": "Much of each batch is padding. Set `data.packing`, or `training.tokens_per_batch`.",
    "learning.masked": (
        "Many rows have no token that is trained, or hardly one: their replies are cut off. Raise `data.max_length`."
    ),
    "learning.not_finite": (
        "The loss is not finite any more. Resume from a checkpoint before that, with a lower learning rate."
    ),
    "learning.rate_zero": "The learning rate is practically zero. Raise `training.learning_rate`.",
    "learning.rate_unreached": "The warm-up lasts as long as the run or longer. Lower `training.warmup`.",
    "learning.diverging": "The loss rises. Lower `training.learning_rate`, and raise `training.warmup`.",
    "learning.gradient_exploding": (
        "The gradient grows far beyond the limit to which it is clipped. Lower `training.learning_rate`."
    ),
    "learning.weights_still": "The trained weights hardly change. Set `training.masters`, or raise the learning rate.",
    "learning.gradient_vanishing": (
        "The gradient is practically zero, so nothing is learnt. Check which tokens of a row are trained."
    ),
    "learning.clipped": (
        "Nearly all gradients are far above the limit and are clipped. Raise `training.max_grad_norm`, or use larger "
        "batches."
    ),
    "learning.flat": "The loss does not move. Raise `training.learning_rate`, and look at the rows.",
    "learning.duplicates": "Many training rows repeat others. Set `data.dedup`.",
}
"""Code -> what it means, and what the user does."""

PASSING = frozenset({"pause.disk_low", "pause.host_memory", "pause.host_cpu", "pause.device_hot"})
"""Pauses that end by themselves when what caused them is over."""


class Pause(NamedTuple):
    """Why a run pauses: a code for programs, and the reason in words, with its figures, for people."""

    code: str
    reason: str

    @property
    def passes(self) -> bool:
        return self.code in PASSING
