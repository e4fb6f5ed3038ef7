"""Readers of lists: LJSpeech, lists with bars (Coqui TTS, VITS), and Common Voice.

The columns of a list with bars are named by its header, by ``options.columns``, or recognized from
their content. If two readings are possible, the list is refused and both are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, ListOptions
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES, Entry, entry, lines, listed

METADATA_FILE = PIPE_LIST = "metadata.csv"
COMMON_VOICE_LIST = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")
KEPT = ("age", "gender", "accents", "up_votes", "down_votes")
AUDIO, TEXT, SPEAKER, SKIP = "audio", "text", "speaker", "skip"
HEADER = {"audio_file": AUDIO, "text": TEXT, "speaker_name": SPEAKER}  # Coqui's names
SAMPLED = 1000  # lines that decide about the columns
# A quoted cell: pandas and spreadsheets double the quotes inside.
QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\||$)')
MOSTLY = 0.8  # of the cells of a column


def split_cells(line: str) -> list[tuple[str, bool]]:
    """The cells of a line, and whether each is quoted as in a CSV file.

    A quoted cell is returned without its quotes; inner quotes are no longer doubled.
    """
    cells: list[tuple[str, bool]] = []
    at = 0
    while True:
        match = QUOTED.match(line, at)
        if match:
            cells.append((match[1].replace('""', '"'), True))
            at = match.end()
        else:
            end = line.find("|", at)
            end = len(line) if end < 0 else end
            cells.append((line[at:end], False))
            at = end
        if at >= len(line):
            return cells
        at += 1


def cells_of(line: str, *, quoted: bool) -> list[str]:
    """The cells of a line, stripped.

    A cell in quotes is CSV if it has doubled quotes or a bar inside, or if the list is ``quoted``
    (:func:`is_quoted`). Otherwise the quotes are part of the text, as in LJSpeech.
    """
    found = []
    for cell, in_quotes in split_cells(line):
        plain = in_quotes and not quoted and '"' not in cell and "|" not in cell
        found.append(f'"{cell}"' if plain else cell.strip())
    return found


def is_quoted(sample: Sequence[str]) -> bool:
    """Whether the list quotes cells as a CSV file does.

    It does if a quoted cell has doubled quotes or a bar inside, or if the last cell of every line,
    of several, is quoted.
    """
    lines_of_cells = [split_cells(line) for line in sample]
    certain = any(
        in_quotes and ('"' in cell or "|" in cell)
        for cells in lines_of_cells
        for cell, in_quotes in cells
    )
    return certain or (len(sample) > 1 and all(cells[-1][1] for cells in lines_of_cells))


def is_open(line: str) -> bool:
    """Whether a cell of a line begins with a quote that the line does not end.

    In a CSV file the text goes on in the next line.
    """
    return any(
        cell.startswith('"') and cell.replace('""', "").count('"') % 2
        for cell, in_quotes in split_cells(line)
        if not in_quotes
    )


def _open_quote(where: str) -> SetAside:
    return SetAside(where, "unfinished quote", "a text goes on in the next line; write it on one")


def read_ljspeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """LJSpeech: ``metadata.csv`` with ``name|raw text|normalized text``, and ``wavs/<name>.wav``.

    Of two texts the last is read, which is the normalized one. A last column of single words beside
    sentences is the speaker.
    """
    path = root / METADATA_FILE
    sample = _sample(path)
    quoted = is_quoted(sample)
    columns = _configured(config)
    rows = [row for line in sample if len(row := cells_of(line, quoted=quoted)) == 3]
    if columns is None and rows:
        _, second, third = zip(*rows, strict=True)
        if not _same_text(second, third) and _are_names(third, second):
            columns = (AUDIO, TEXT, SPEAKER)
    for number, line in lines(path):
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{METADATA_FILE}:{number}"
        cells = cells_of(line, quoted=quoted)
        if quoted and is_open(line):
            yield _open_quote(where)
            continue
        if len(cells) < 2:
            yield SetAside(where, "no text column", "a line is name|text or name|raw|text")
            continue
        named = columns if columns and len(columns) == len(cells) else None
        fields = dict(zip(named, cells, strict=True)) if named else {TEXT: cells[-1]}
        name = f"wavs/{cells[0]}"
        if not (root / name).is_file() and (root / f"{name}.wav").is_file():
            name += ".wav"
        audio = listed(root, name, where)
        yield entry(config, audio, where, fields[TEXT], speaker=fields.get(SPEAKER, ""))


def read_pipe_list(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Lists with columns between bars, as for Coqui TTS and VITS.

    ``root`` is the list, or a folder with ``metadata.csv``. With Coqui's header
    (``audio_file|text|speaker_name``) columns are read by name. Else ``options.columns`` name them,
    or they are recognized: ``audio|text``, ``audio|speaker|text`` (VITS) or ``audio|text|speaker``
    (StyleTTS). Audio lies below the folder of the list. Raises ConfigError if the columns are
    ambiguous.
    """
    path = root / PIPE_LIST if root.is_dir() else root
    sample = _sample(path)
    first = cells_of(sample[0], quoted=False) if sample else []
    has_header = "audio_file" in first
    quoted = is_quoted(sample[has_header:])
    rows = [cells_of(line, quoted=quoted) for line in sample[has_header:]]
    columns = _configured(config)
    if has_header:
        columns = _of_header(first, path)
    elif columns is None and rows:
        width = Counter(map(len, rows)).most_common(1)[0][0]
        columns = recognize_columns([row for row in rows if len(row) == width], path)
    for number, line in lines(path):
        if isinstance(line, SetAside):
            yield line
            continue
        if number == 1 and has_header:
            continue
        where = f"{path.name}:{number}"
        cells = cells_of(line, quoted=quoted)
        if quoted and is_open(line):
            yield _open_quote(where)
            continue
        if columns is None or len(cells) != len(columns):
            named = "|".join(columns or ())
            yield SetAside(where, "other columns", f"{len(cells)} columns; a line is {named}")
            continue
        row = dict(zip(columns, cells, strict=True))
        audio = listed(path.parent, row[AUDIO], where)
        yield entry(config, audio, where, row.get(TEXT, ""), speaker=row.get(SPEAKER, ""))


def _of_header(header: Sequence[str], path: Path) -> tuple[str, ...]:
    """The meaning of the columns of a header with Coqui's names. Raises ConfigError."""
    columns = tuple(HEADER.get(name, SKIP) for name in header)
    if columns.count(AUDIO) != 1 or columns.count(TEXT) != 1:
        raise ConfigError(
            f"{path}: the header {'|'.join(header)} needs audio_file and text once; correct it, or "
            f"remove it and name the columns in [corpora.<name>.options]"
        )
    return columns


def recognize_columns(rows: Sequence[Sequence[str]], path: Path) -> tuple[str, ...]:
    """The meaning of the columns of ``rows``, which have the same width of two or more.

    Raises ConfigError, with the possible readings, if the content does not decide.
    """
    columns = list(zip(*rows, strict=True))
    width = len(columns)
    if width < 2:
        raise ConfigError(f"{path}: a line has one column; write audio|text")
    audio = _audio_column(columns)
    left = [index for index in range(width) if index != audio]
    if len(left) == 1:
        return _named(width, audio, text=left[0])
    if len(left) > 2:
        raise _ambiguous(path, rows, f"{width} columns without a header")
    one, other = left
    if _same_text(columns[one], columns[other]):  # raw and normalized
        return _named(width, audio, text=other, skipped=one)
    scores = [_looks_like_speakers(columns[i], columns[j]) for i, j in ((one, other), (other, one))]
    if scores[0] == scores[1]:
        raise _ambiguous(path, rows, "text and speaker cannot be told apart")
    speaker, text = (one, other) if scores[0] else (other, one)
    return _named(width, audio, text=text, speaker=speaker)


def _audio_column(columns: Sequence[Sequence[str]]) -> int:
    """The column with the most names of audio files, the first of equals."""
    counts = [
        sum(Path(cell.replace("\\", "/")).suffix.lower() in AUDIO_SUFFIXES for cell in column)
        for column in columns
    ]
    return counts.index(max(counts))


def _same_text(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two columns hold the same texts, raw and normalized: most pairs share words."""
    pairs = [(a.lower().split(), b.lower().split()) for a, b in zip(one, other, strict=True)]
    return sum(bool(set(a) & set(b)) for a, b in pairs) >= MOSTLY * len(pairs)


def _are_names(column: Sequence[str], other: Sequence[str]) -> bool:
    """Whether ``column`` has single words, and ``other`` mostly several."""
    words, others = ([len(cell.split()) for cell in cells] for cells in (column, other))
    single = sum(count <= 1 for count in words) >= MOSTLY * len(words)
    return single and sum(count > 1 for count in others) >= len(others) / 2


def _looks_like_speakers(column: Sequence[str], other: Sequence[str]) -> bool:
    """Whether ``column`` is speakers if ``other`` is texts.

    Speakers are one word or number per cell, or few distinct names. Texts mostly have several
    words.
    """
    # Names repeat and texts rarely do: "Ann Smith" beside words that all differ is no text.
    repeated = len(set(other)) <= len(other) / 4 and len(set(column)) > len(set(other))
    if _are_names(column, other) and not repeated:
        return True
    numbers = all(re.fullmatch(r"[a-zA-Z]{0,3}\d+", cell) for cell in column)
    if numbers and not any(re.fullmatch(r"[a-zA-Z]{0,3}\d+", cell) for cell in other):
        return True
    few = len(set(column)) <= len(column) / 4
    many = len(set(other)) >= MOSTLY * len(other)
    return few and many and len(" ".join(column)) < len(" ".join(other))


def _named(
    width: int, audio: int, *, text: int, speaker: int | None = None, skipped: int | None = None
) -> tuple[str, ...]:
    names = {audio: AUDIO, text: TEXT, speaker: SPEAKER, skipped: SKIP}
    return tuple(names[index] for index in range(width))


def _ambiguous(path: Path, rows: Sequence[Sequence[str]], why: str) -> ConfigError:
    example = "|".join(rows[0])
    if len(rows[0]) == 3:
        readings = [
            f'columns = ["audio", "speaker", "text"]: {rows[0][1]!r} says {rows[0][2]!r}',
            f'columns = ["audio", "text", "speaker"]: {rows[0][2]!r} says {rows[0][1]!r}',
        ]
    else:
        readings = ['columns = ["audio", "text", "skip", …], one name per column']
    return ConfigError(
        f"{path}: {why} in {example!r}; write to [corpora.<name>.options] one of "
        f"{'; or '.join(readings)}"
    )


def _configured(config: CorpusConfig) -> tuple[str, ...] | None:
    return config.options.columns if isinstance(config.options, ListOptions) else None


def _sample(path: Path) -> list[str]:
    """The first lines of a list that are text."""
    return [line for _, line in islice(lines(path), SAMPLED) if isinstance(line, str)]


def read_common_voice(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Common Voice: the TSV of a release of one language, with its clips in ``clips/``.

    ``root`` is the TSV (``train.tsv``, ``other.tsv``, …), or the folder of ``validated.tsv``. The
    speaker is the anonymous ``client_id``. Raises ConfigError if a column is missing.
    """
    path = root / COMMON_VOICE_LIST if root.is_dir() else root
    rows = lines(path)
    header = _header(path, next(rows, (0, ""))[1])
    for number, line in rows:
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{path.name}:{number}"
        # These files have no quoted fields: quotation marks are part of sentences.
        row = dict(zip(header, line.split("\t"), strict=False))
        if not row.get("path") or "sentence" not in row:
            yield SetAside(where, "columns are missing", f"a row has {', '.join(COLUMNS)}")
            continue
        facts = {name: row[name] for name in KEPT if row.get(name)}
        fields = {"original_data": facts} if facts else {}
        yield entry(
            config,
            listed(path.parent, f"clips/{row['path']}", where),
            where,
            row["sentence"],
            speaker=row["client_id"],
            language=row.get("locale", ""),
            **fields,
        )


def _header(path: Path, line: str | SetAside) -> list[str]:
    header = [] if isinstance(line, SetAside) else line.split("\t")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConfigError(f"{path} has no columns {', '.join(missing)}; correct path or reader")
    return header
