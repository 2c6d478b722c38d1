"""Spreadsheets written by hand: the least that .xlsx and .ods need."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

Sheet = Sequence[Sequence[str | int | float | bool]]

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OPEN = "urn:oasis:names:tc:opendocument:xmlns"


def xlsx(path: Path, sheets: Mapping[str, Sheet | str]) -> Path:
    """Write ``sheets`` by title; a sheet given as text is the XML of its rows."""
    names, relations, parts = "", "", {}
    for number, (title, sheet) in enumerate(sheets.items(), start=1):
        names += f'<sheet name="{title}" sheetId="{number}" r:id="r{number}"/>'
        relations += (
            f'<Relationship Id="r{number}" Type="{_RELATIONS}/worksheet" '
            f'Target="worksheets/sheet{number}.xml"/>'
        )
        rows = sheet if isinstance(sheet, str) else "".join(map(_row, range(1, 99), sheet))
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{_MAIN}"><sheetData>{rows}</sheetData></worksheet>'
        )
    parts["xl/workbook.xml"] = (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELATIONS}"><sheets>{names}</sheets></workbook>'
    )
    parts["xl/_rels/workbook.xml.rels"] = (
        f'<Relationships xmlns="{_PACKAGE}/relationships">{relations}</Relationships>'
    )
    parts["_rels/.rels"] = (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{_RELATIONS}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0"?>{text}')
    return path


def _row(number: int, values: Sequence[str | int | float | bool]) -> str:
    cells = ""
    for column, value in enumerate(values):
        place = f'r="{chr(65 + column)}{number}"'
        if isinstance(value, bool):
            cells += f'<c {place} t="b"><v>{int(value)}</v></c>'
        elif not isinstance(value, str):
            cells += f"<c {place}><v>{value}</v></c>"
        elif value:
            text = f'<t xml:space="preserve">{escape(value)}</t>'
            cells += f'<c {place} t="inlineStr"><is>{text}</is></c>'
    return f'<row r="{number}">{cells}</row>'


def ods(path: Path, sheets: Mapping[str, Sheet | str]) -> Path:
    """As ``xlsx``; all values are text."""
    tables = ""
    for title, sheet in sheets.items():
        rows = sheet if isinstance(sheet, str) else "".join(map(_open_row, sheet))
        tables += f'<table:table table:name="{title}">{rows}</table:table>'
    names = " ".join(f'xmlns:{n}="{_OPEN}:{n}:1.0"' for n in ("office", "table", "text"))
    body = f"<office:body><office:spreadsheet>{tables}</office:spreadsheet></office:body>"
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = f'<m:file-entry m:full-path="/" m:media-type="{kind}"/>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", kind)
        archive.writestr(
            "META-INF/manifest.xml",
            f'<m:manifest xmlns:m="{_OPEN}:manifest:1.0">{entry}</m:manifest>',
        )
        archive.writestr(
            "content.xml", f"<office:document-content {names}>{body}</office:document-content>"
        )
    return path


def _open_row(values: Sequence[str | int | float | bool]) -> str:
    cells = "".join(
        f'<table:table-cell office:value-type="string"><text:p>{escape(str(value))}</text:p>'
        "</table:table-cell>"
        for value in values
    )
    return f"<table:table-row>{cells}</table:table-row>"
