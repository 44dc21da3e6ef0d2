"""What became of the steps of a backup and of a restore, for people."""

from __future__ import annotations

from typing import Any

from runner.report import phrases


def lines(step: str, result: dict[str, Any]) -> list[str]:
    """The lines of one step; none for steps of other kinds, and for those that did nothing."""
    if not result:
        return []
    match step:
        case "back_up_tables":
            return _tables(result)
        case "truncate_tables":
            return [
                f"emptied {item['table']}: {phrases.counted(item['rows_before'], 'row')} before, {item['rows_after']:,} after"
                for item in result["truncated"]
            ]
        case "load_tables":
            return [_loaded(item) for item in result["tables"]]
        case "unload_tables":
            return [
                f"removed {item['table']}, which was not there before" if item["removed"]
                else f"{item['table']} is what it was before: {phrases.counted(item['rows'], 'row')}"
                for item in result["tables"]
            ]  # fmt: skip
        case "seal_backup":
            return _collections(result)
        case "check_backup":
            return [
                f"checked the backup: {phrases.counted(result['files'], 'file')}, {phrases.size(result['bytes'])}, as its manifest says"
            ]
    return []


def _tables(result: dict[str, Any]) -> list[str]:
    lines = [f"backup {result['backup']} in {result['backup_directory']}: {phrases.size(result['bytes'])}"]
    for item in result["tables"]:
        if item["error"]:
            lines.append(f"  {item['table']}: failed: {item['error']}")
        else:
            shown = f"{phrases.counted(item['row_count'], 'row')}, {phrases.size(item['file_size'])}"
            lines.append(f"  {item['table']}: {shown}, {item['backup_file']}")
    return lines


def _loaded(item: dict[str, Any]) -> str:
    replaced = f"; {item['replaced']:,} that were there are kept for the rollback" if item.get("replaced") else ""
    return f"filled {item['table']} with {phrases.counted(item['rows'], 'row')}{replaced}"


def _collections(result: dict[str, Any]) -> list[str]:
    lines = [f"backup {result['backup']}: {phrases.counted(result['files'], 'file')}, {phrases.size(result['bytes'])}"]
    for item in result["collections"]:
        kept = f", {item['kept']:,} shared with earlier backups" if item["kept"] else ""
        shown = f"{phrases.counted(item['rows'], 'point')}, {phrases.counted(item['written'], 'file')} written{kept}"
        lines.append(f"  {item['collection']}: {shown}")
        if moved := item.get("moved"):
            lines.append(f"    {moved}")
    return lines
