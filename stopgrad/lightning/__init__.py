"""Lightning callbacks: audits of flow, frozen parts, kept graphs and ranks. Off, they install nothing."""

from stopgrad.lightning.flow import FlowAudit as FlowAudit
from stopgrad.lightning.freeze import FreezeAudit as FreezeAudit
from stopgrad.lightning.names import loss_being_named as loss_being_named
from stopgrad.lightning.names import loss_name as loss_name
from stopgrad.lightning.names import unaudited as unaudited
from stopgrad.lightning.ranks import RankAudit as RankAudit
from stopgrad.lightning.retention import RetentionAudit as RetentionAudit
