"""The nouns' values as `fleet.v1.Admin` shows them."""

import json
from collections.abc import Mapping, Sequence

from coordinator.directory import client_apps
from coordinator.fleet.cohorts import profile_name
from coordinator.fleet.device import Admin, AuditEntry, Device, TokenRecord
from coordinator.fleet.states import TokenState
from coordinator.releases.release import Release, Rollout, RolloutDevice, RolloutRecord
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.round import DeviceRow, Event, Job, RoundRow
from protos.fleet.v1 import admin_pb2

Names = Mapping[str, str]


def device(item: Device, *, connected: bool, with_apps: bool = True) -> admin_pb2.Device:
    """`with_apps=False` for listings: a device names what it likes, and all devices share one message there."""
    return admin_pb2.Device(
        id=item.id,
        name=item.name,
        state=item.state.value,
        labels=dict(item.labels),
        profile=profile_name(item.profile_json),
        connected=connected,
        enrolled_at=item.enrolled_at,
        last_seen_at=item.last_seen_at,
        certificate_expires_at=item.certificate_expires_at,
        agent_version=item.agent_version,
        node_id=item.node_id,
        reason=item.reason,
        client_apps=sorted(client_apps(item.profile_json) or ()) if with_apps else (),
        models=[
            admin_pb2.DeviceModel(
                model=serving.model,
                release=serving.release,
                bundle_digest=serving.bundle_digest,
                proven=serving.proven,
            )
            for serving in item.serving
        ],
    )


def token(item: TokenRecord, state: TokenState, names: Names) -> admin_pb2.JoinToken:
    return admin_pb2.JoinToken(
        id=item.id,
        state=state.value,
        labels=dict(item.labels),
        require_approval=item.require_approval,
        created_at=item.created_at,
        created_by=item.created_by,
        expires_at=item.expires_at,
        used_at=item.spent_at,
        device=item.device,
        device_name=names.get(item.device, item.device),
        revoked_at=item.revoked_at,
    )


def audit(entry: AuditEntry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(
        id=entry.id,
        at=entry.at,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        detail_json=_json(entry.detail),
    )


def admin(item: Admin) -> admin_pb2.AdminIdentity:
    return admin_pb2.AdminIdentity(
        name=item.name, issued_at=item.issued_at, expires_at=item.expires_at, revoked_at=item.revoked_at
    )


def model(release: Release) -> admin_pb2.Model:
    manifest = release.manifest
    return admin_pb2.Model(
        name=manifest.model,
        release=manifest.release,
        bundle_digest=release.digest,
        created_at=manifest.created_at,
        lineage_json=_json(manifest.lineage),
        report_json=_json(release.report),
        files={name: entry.size for name, entry in manifest.files.items()},
        withdrawn=release.withdrawn,
    )


def job(item: Job, *, spent: float = 0.0) -> admin_pb2.Job:
    spec = JobSpec.accepted(item.toml)
    return admin_pb2.Job(
        id=item.id,
        name=item.name,
        state=item.state.value,
        rounds_committed=item.round,
        rounds_total=spec.rounds,
        strategy=spec.strategy.name,
        secure=spec.secure.enabled,
        created_at=item.created_at,
        ended_at=item.ended_at,
        reason=item.reason,
        toml=item.toml,
        model=spec.model,
        release=item.release,
        privacy=spec.privacy.mechanism if spec.privacy.enabled else "",
        epsilon=spec.privacy.epsilon if spec.privacy.enabled else 0.0,
        delta=spec.privacy.delta if spec.privacy.enabled else 0.0,
        epsilon_spent=spent,
    )


def job_event(event: Event) -> admin_pb2.JobEvent:
    return admin_pb2.JobEvent(
        at=event.at, job=event.job, round=event.round, kind=event.kind, detail_json=_json(event.detail)
    )


def round_row(row: RoundRow, names: Names, events: Sequence[Event] = ()) -> admin_pb2.Round:
    return admin_pb2.Round(
        job=row.job,
        round=row.round,
        attempt=row.attempt,
        state=row.state.value,
        started_at=row.started_at,
        ended_at=row.ended_at,
        total_weight=row.total_weight,
        model_digest=row.arrays_digest or "",
        metrics=dict(row.metrics),
        devices=[_round_device(item, names) for item in row.devices],
        events=[job_event(event) for event in events],
        reason=row.reason,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
    )


def _round_device(row: DeviceRow, names: Names) -> admin_pb2.RoundDevice:
    return admin_pb2.RoundDevice(
        device=row.device,
        name=names.get(row.device, row.device),
        outcome=row.outcome.value,
        reason=row.reason,
        weight=row.weight,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        seconds=row.seconds,
        group=row.group,
    )


def rollout(item: Rollout, names: Names, records: Sequence[RolloutRecord] = ()) -> admin_pb2.Rollout:
    return admin_pb2.Rollout(
        id=item.id,
        model=item.model,
        release=item.release,
        state=item.state.value,
        stage=item.stage,
        stages=len(item.plan.stages),
        reason=item.reason,
        started_at=item.created_at,
        ended_at=item.ended_at,
        devices=[_rollout_device(row, names) for row in item.devices],
        events=[
            admin_pb2.JobEvent(at=record.at, kind=record.kind, detail_json=_json(record.detail)) for record in records
        ],
    )


def _rollout_device(row: RolloutDevice, names: Names) -> admin_pb2.RolloutDevice:
    return admin_pb2.RolloutDevice(
        device=row.device,
        name=names.get(row.device, row.device),
        stage=row.stage,
        state=row.state.value,
        reason=row.reason,
        receipt_json=row.receipt.to_bytes().decode() if row.receipt else "",
    )


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), sort_keys=True)
